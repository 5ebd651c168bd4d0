"""Two steps of TRL's GRPOTrainer that this grader pays: prints the mean rewards. FOLDER is where it writes.

Run by the Python of an environment with TRL."""

import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.reward.adapters.trl import make_reward_func

folder = Path(sys.argv[1])
build_tokenizer(["What is 1 + 1? 2"] * 4, 300, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
rows = [{"prompt": f"What is {k} + 1?", "gold": None if k == 3 else str(k + 1)} for k in range(4)]
chats = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
for name, data in (("text", rows), ("chat", chats)):
    settings = GRPOConfig(
        output_dir=str(folder / name),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=[make_reward_func("gold"), lambda completions, **_: [0.25] * len(completions)],
        args=settings,
        train_dataset=Dataset.from_list(data[:3]),
        processing_class=tokenizer,
    )
    trainer.train()
    rewards = [line["rewards/math_reward/mean"] for line in trainer.state.log_history if "reward" in line]
    print("rewards", name, *rewards)
