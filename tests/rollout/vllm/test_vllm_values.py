"""Our settings as vLLM's, and its answers held against what was asked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.vllm.model_folder import cache_root, model_folder
from nemo_simplerl.rollout.vllm.values import (
    check_answers,
    llm_arguments,
    process_environment,
    request_arguments,
    visible_name,
)

PARAMS = SamplingParams(n=1, max_tokens=3, temperature=0.7, top_p=0.9, top_k=5, stop=(), stop_token_ids=(0,))
SETTINGS = compose(["experiment=quickstart"]).rollout.vllm


def arguments_on(device: str, **settings):
    return llm_arguments(Path("folder"), torch.device(device), torch.bfloat16, 300, replace(SETTINGS, **settings))


def test_a_cpu_reads_prompts_whole_and_does_not_take_the_machines_memory():
    arguments = arguments_on("cpu", max_num_tokens=100)
    assert arguments["enable_chunked_prefill"] is False and arguments["max_num_batched_tokens"] == 300
    assert arguments["kv_cache_memory_bytes"] == SETTINGS.cpu_kv_cache_mb * 2**20
    assert "gpu_memory_utilization" not in arguments and "enable_sleep_mode" not in arguments


def test_a_gpu_is_shared_with_the_trainer():
    arguments = arguments_on("cuda", sleep=True, cuda_graph=True)
    assert arguments["enable_sleep_mode"] is True and arguments["enforce_eager"] is False
    assert arguments["gpu_memory_utilization"] == SETTINGS.gpu_memory_utilization
    assert "kv_cache_memory_bytes" not in arguments and "enable_chunked_prefill" not in arguments


def test_every_engine_reports_the_log_probabilities_it_samples_by_and_the_users_arguments_come_last():
    for device in ("cpu", "cuda"):
        arguments = arguments_on(device, engine_args={"block_size": 32, "max_num_seqs": 7})
        assert arguments["logprobs_mode"] == "processed_logprobs" and arguments["dtype"] == "bfloat16"
        assert arguments["generation_config"] == "vllm" and arguments["load_format"] == "dummy"
        assert arguments["block_size"] == 32 and arguments["max_num_seqs"] == 7


def test_the_process_gets_neither_the_launchers_variables_nor_the_trainers_python(monkeypatch):
    for name in ("RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("HOME_OF_MODELS", "/models")
    found = process_environment([], threads=3)
    assert not {"RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & found.keys()
    assert found["HOME_OF_MODELS"] == "/models" and found["OMP_NUM_THREADS"] == "3"
    assert found["VLLM_NO_USAGE_STATS"] == "1" and found["TORCHDYNAMO_DISABLE"] == "1"
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    on_gpus = process_environment(["2", "3"], threads=1)
    assert on_gpus["CUDA_VISIBLE_DEVICES"] == "2,3" and "TORCHDYNAMO_DISABLE" not in on_gpus


def test_the_process_gets_no_library_of_another_python(monkeypatch):
    theirs = "/usr/local/lib/python3.12/dist-packages/torch/lib:/opt/venv/lib/python3.11/site-packages/torch/lib"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{theirs}:/usr/local/cuda/lib64:/opt/my-site-packages")
    assert process_environment([], 1)["LD_LIBRARY_PATH"] == "/usr/local/cuda/lib64:/opt/my-site-packages"


def test_the_same_model_has_the_same_path_where_vllm_keeps_what_it_compiled(tmp_path):
    for name in ("one", "other", "changed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{1}" if name == "changed" else "{}")
    root, process = cache_root({"XDG_CACHE_HOME": str(tmp_path)}), tmp_path / "process"
    process.mkdir()
    one, other, changed = (
        model_folder(tmp_path / name / "config.json", root, process) for name in ("one", "other", "changed")
    )
    assert one == other != changed and root in one.parents
    assert [file.name for file in one.iterdir()] == ["config.json"] and (changed / "config.json").read_text() == "{1}"
    assert model_folder(tmp_path / "one/config.json", Path("/proc/none"), process) == process / "model"


def test_a_gpu_is_named_as_the_launcher_names_it():
    gpu = torch.device("cuda", 1)
    assert visible_name(gpu, {"CUDA_VISIBLE_DEVICES": "4, GPU-ab12"}) == "GPU-ab12"
    assert visible_name(gpu, {}) == "1"
    assert visible_name(torch.device("cpu"), {"CUDA_VISIBLE_DEVICES": "4"}) is None


@pytest.mark.parametrize(("seed", "sent"), [(-1, 2**64 - 1), (2**64, 0), (2**64 + 5, 5), (7, 7)])
def test_no_seed_is_one_that_vllm_takes_for_none_or_dies_of(seed, sent):
    assert request_arguments(PARAMS, seed)["seed"] == sent


def test_a_request_stops_where_we_say_alone_and_greedy_has_no_filters():
    arguments = request_arguments(PARAMS, 7)
    assert arguments["ignore_eos"] is True and arguments["stop_token_ids"] == [0]
    assert (arguments["top_p"], arguments["top_k"], arguments["logprobs"]) == (0.9, 5, 0)
    greedy = request_arguments(replace(PARAMS, temperature=0.0), 7)
    assert (greedy["top_p"], greedy["top_k"]) == (1.0, 0)


GOOD = ([4, 5, 0], [-1.0, -1.0, -1.0], "stop")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([GOOD], "answered 1 of 2 requests"),
        ([GOOD, ([4, 5], [-1.0, -1.0], "stop")], "of 2 tokens by 'stop' without reason"),
        ([GOOD, ([4, 5], [-1.0, -1.0], "length")], "of 2 tokens by 'length' without reason"),
        ([GOOD, ([4, 5, 6], [-1.0, -1.0, -1.0], "abort")], "'abort' instead of"),
        ([GOOD, ([4, 5, 6], [-1.0, -1.0], "length")], "2 log-probabilities of 3 tokens"),
        ([GOOD, ([4, 5, 9], [-1.0, -1.0, -1.0], "length")], "sampled id 9, and the tokenizer has 9 ids"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_refused(answers, told):
    check_answers([GOOD, GOOD], PARAMS, 2, vocab_limit=9)
    with pytest.raises(RuntimeError, match=told):
        check_answers(answers, PARAMS, 2, vocab_limit=9)
