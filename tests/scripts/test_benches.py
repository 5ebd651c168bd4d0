"""The benches run in their smallest form and print one JSON line; the formulas in them count what is computed."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nemo_simplerl.config.experiments import choices
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf import engine as hf_engine
from support.ranks import run_ranks
from support.tiny import save_hf_model

BENCHES = Path(__file__).parents[2] / "scripts/bench"
sys.path.insert(0, str(BENCHES))

import algorithms  # noqa: E402
import page  # noqa: E402
import placement  # noqa: E402
import step  # noqa: E402


def bench(script, *arguments):
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, str(BENCHES / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_the_logprob_bench_finds_tiles_small_and_exact():
    sizes = ("--tokens=64", "--vocab=20000", "--hidden=16", "--tile", "64", "4096")
    found = bench("logprob.py", *sizes, "--repeats=1", "--threads=1")
    extra = found["extra_mb"]
    logits_mb, tile_mb = 64 * 20000 * 4 / 1e6, 64 * 4096 * 4 / 1e6
    assert tile_mb < extra["tiled"]["forward_backward"] < 4 * tile_mb
    assert 2 * logits_mb < extra["dense"]["forward_backward"] < 6 * logits_mb
    assert 0 < found["growth_per_token"]["forward"] < 4 * 16
    for differences in found["largest_difference"].values():
        assert differences.keys() == {"logprob", "entropy", "hidden_gradient", "weight_gradient"}
    assert max(found["largest_difference"]["tiled_from_float64"].values()) < 1e-5
    assert found["seconds"].keys() == {"tiled", "dense"}


def test_the_step_bench_gives_every_response_the_length_it_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES / "sides"))
    ours = importlib.import_module("ours")
    monkeypatch.setattr(hf_engine, "decode", hf_engine.decode)  # put back when the test ends
    folder = save_hf_model(tmp_path / "model")
    engine = hf_engine.HfEngine(folder, tokenizer=None, max_batch_size=4)
    engine.refit([list(load_file(folder / "model.safetensors").items())], 1)
    params = SamplingParams(n=2, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3,))
    roles = SimpleNamespace(sampling=params, config=SimpleNamespace(trainer=SimpleNamespace(seed=1)))
    lengths = [3, 8, 1, 5]
    ours.force_lengths(roles, lengths, 1)
    seeds = [sample_seed(1, 1, position, k) for position in range(2) for k in range(2)]
    sampled = engine.generate([[5, 9, 11], [7]], params, seeds)
    assert [len(completion.token_ids) for completion in sampled] == lengths


@pytest.mark.long
def test_the_scaling_bench_tells_what_a_token_costs_at_every_size():
    found = bench("scaling.py", "--samples=64,128", "--vocab=512,1024", "--axes=samples,vocab", "--repeats=1")
    sizes = {axis: [row[axis] for row in found[axis]] for axis in found["spread"]}
    assert sizes == {"samples": [64, 128], "vocab": [512, 1024]}
    for axis in sizes:
        assert all(row[cost] > 0 for row in found[axis] for cost in ("train_us", "rollout_us", "cpu_us"))
    assert all("rss_growth_mb" in row for row in found["samples"])


def toy_flops():
    """FLOPs of a pass of the toy without gradients: as counted, and by the formula of gpu.py."""
    import gpu

    config = gpu.configuration(gpu.SMALL)
    mesh = gpu.mesh_of(config.actor, config.trainer.distributed_timeout_s)
    actor = gpu.actor_of(gpu.TOY, config, mesh, transformer_engine=False)
    batch = gpu.random_batch(gpu.TOY, gpu.SMALL, mesh.device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused kernel of a CPU
        actor.logprobs(batch)
    gpu.destroy_mesh()
    return counter.get_total_flops(), gpu.forward_flops(gpu.TOY, gpu.SMALL)


@pytest.mark.slow
def test_the_flops_of_a_pass_are_those_that_torch_counts():
    ((counted, by_formula),) = run_ranks(toy_flops, 1)
    # 8 sequences of 32 tokens, 2 layers of attention 64 wide, which torch counts as if every token saw all others.
    unmasked = 8 * 2 * 2 * 64 * 32**2
    assert counted == by_formula + unmasked


def test_each_table_of_the_pages_has_a_writer_and_each_writer_a_table():
    told = " ".join(path.read_text() for path in page.PAGES)
    assert set(re.findall(r"<!-- (\w+) -->", told)) - {"end"} == page.TABLES.keys()


def test_a_table_is_written_from_its_figures_and_left_alone_without_them():
    told = "<!-- convert -->\nold\n<!-- end -->\ntext\n<!-- grader -->\nold\n<!-- end -->\n"
    figures = {"gigabytes": 3.1, "cp_s": 2.0, "to_nemo_s": 3.0, "to_hf_s": 2.5}
    figures |= {"to_nemo_over_cp": 1.5, "to_hf_over_cp": 1.25}
    table = "| 3.1 GB | seconds | over `cp` |\n| --- | --- | --- |\n| `cp` and `sync` | 2.0 | 1 |\n"
    table += "| HF to `.nemo` | 3.0 | 1.5 |\n| `.nemo` to HF | 2.5 | 1.25 |"
    assert page.filled(told, page.Lines(convert=figures)) == told.replace("old", table, 1)


def test_the_table_of_recipes_has_a_row_each_beside_ppos_step(tmp_path):
    lines = [
        {
            "bench": "algorithms",
            "recipe": recipe,
            "seed": seed,
            "step_seconds": step_s,
            "seconds": 100.0,
            "peak_mb": 1200,
        }
        | {"eval/accuracy": [8.0, 90.0 + seed], "eval/sampled_accuracy": [20.0, 80.0 + seed]}
        for recipe, step_s in (("default", 4.0), ("grpo", 2.0))
        for seed in (1, 2)
    ]
    lines[0] |= {"as": "algorithms default 1"}  # as all.sh writes it
    figures, told = tmp_path / "figures.jsonl", tmp_path / "told.md"
    figures.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told.write_text("<!-- algorithms -->\nold\n<!-- end -->\n")
    page.main(str(figures), told)
    head, _, *body = told.read_text().splitlines()[1:-1]
    assert head.count("|") == 9
    assert body[1] == "| `grpo` | 8.0 % -> 91.0 % | 8.0 % -> 92.0 % | 81.0 / 82.0 % | 2.00 | 0.50 | 100 | 1,200 |"


def test_every_recipe_is_measured():
    assert set(algorithms.RECIPES) | {"simplerl_zoo"} == set(choices("algo"))
    measured = re.search(r"for recipe in (.+); do", (BENCHES / "all.sh").read_text())
    assert measured is not None and tuple(measured[1].split()) == algorithms.RECIPES


def test_a_ratio_of_steps_is_the_median_over_rounds_with_its_least_and_most():
    ours = [{"step": 2.0, "passes": 0.5, "updates": 0.5, "generation": 1.0, "others": 0.0} for _ in range(3)]
    theirs = [
        {"step": seconds, "passes": 1.0, "updates": 1.0, "generation": 3.0, "others": others}
        for seconds, others in ((4.0, 0.0), (8.0, 0.5), (6.0, 0.0))
    ]
    found = step.against(theirs, ours)
    assert found["step"] == {"median": 3.0, "least": 2.0, "most": 4.0, "rounds": 3}
    assert found["training"]["median"] == 2.0 and found["generation"]["median"] == 3.0
    assert found["uncontended"] == {"median": 2.5, "least": 2.0, "most": 3.0, "rounds": 2}


def test_the_time_line_of_a_placement_shows_a_step_of_each_rank_from_rollout_to_rollout():
    def event(rank, name, begin, end):
        return {"pid": rank, "name": name, "ts": 10**6 * begin, "dur": 10**6 * (end - begin)}

    step_of_ranks = [(1, "rollout", 0, 4), (0, "old_logprobs", 4, 6), (0, "update", 4, 9), (0, "actor_update", 7, 10)]
    events = [event(rank, name, begin + k, end + k) for k in (0, 10) for rank, name, begin, end in step_of_ranks]
    assert placement.drawn(events, 10, step=1, columns=10) == "rank 0  ....LL.AAA\nrank 1  RRRR......"
