"""A training of a few seconds in which much is in play, and whether two runs of it are the same (kill_resume.py)."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import synthetic_dataset

STEPS, SAVE_EVERY, EVAL_EVERY = 24, 4, 6
CRITIC_STEPS = 6  # then the run labels its own data
SAVES = sorted({CRITIC_STEPS, *range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)})
TIMES = {"samples_per_s", "data_time", "update_time", "peak_memory_gb"}
OF_THIS_START = {"train_config.json", "manifest.json"}  # say whether it was resumed, and how it was saved
SIZES = {
    **{"llm_width": 64, "llm_mlp_dim": 128, "llm_depth": 2, "expert_width": 32, "expert_mlp_dim": 64, "head_dim": 8},
    **{"vision_width": 32, "vision_mlp_dim": 64, "vision_depth": 1, "vision_heads": 4, "vision_patch_size": 16},
    **{"image_resolution": [32, 32], "vocab_size": 300, "critic_llm_depth": 1, "num_value_queries": 2},
    **{"chunk_size": 4, "n_action_steps": 2, "max_action_dim": 8, "max_state_dim": 8, "num_inference_steps": 2},
}


def configuration(folder: Path, batch_size: int) -> Path:
    """The tiny training; it writes to ``folder/run``."""
    raw = {
        **{"output_dir_offline": str(folder / "run"), "seed": 7, "num_workers": 0, "batch_size": batch_size},
        **{"log_freq": 1, "save_freq": SAVE_EVERY, "eval_steps": EVAL_EVERY, "max_eval_samples": 8, "resume": True},
        "dataset": {
            **{"repo_id": synthetic_dataset.REPO_ID, "root": str(folder / "data"), "eval_split": 0.34},
            **{"video_backend": "pyav", "image_transforms": {"enable": True}},
        },
        "policy": {
            **SIZES,
            **{"device": "cpu", "tokenizer": "tasks", "tokenizer_max_length": 48, "offline_steps": STEPS},
            **{"actor_lr": 1e-3, "critic_lr": 1e-3, "advantage_window": 32, "critic_warmup_steps": CRITIC_STEPS},
            **{"policy_update_freq": 2, "critic_target": "td", "n_step": 3, "critic_early_stop": 2, "critic_folds": 2},
            "advantage_positive_weight": 3.0,
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(raw))
    return path


def last_step(run: Path) -> int:
    """The step of the last whole line of ``metrics.jsonl``; 0 without one."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def differences(reference: Path, run: Path) -> list[str]:
    """Every file and line in which two finished runs differ."""
    found = []
    lines = [metrics_lines(folder) for folder in (reference, run)]
    if lines[0] != lines[1]:
        pairs = enumerate(zip(*lines, strict=False))
        first = next((n for n, (one, other) in pairs if one != other), min(map(len, lines)))
        found.append(
            f"metrics.jsonl: {len(lines[0])} and {len(lines[1])} lines, line {first + 1} is the first to differ"
        )
    tables = [labels(folder) for folder in (reference, run)]
    found += [f"labels: {name} differ" for name in tables[0] if tables[0][name] != tables[1].get(name)]
    trees = [{str(p.relative_to(folder)) for p in (folder / "checkpoints").rglob("*")} for folder in (reference, run)]
    found += [f"{name} is in one of them only" for name in sorted(trees[0] ^ trees[1])]
    for name in sorted(trees[0] & trees[1]):
        one, other = reference / name, run / name
        if one.is_symlink() and os.readlink(one) != os.readlink(other):
            found.append(f"{name} points elsewhere")
        elif one.is_file() and one.name not in OF_THIS_START and one.read_bytes() != other.read_bytes():
            found.append(f"{name} differs")
    return found


def labels(run: Path) -> dict[str, list]:
    """Columns of the labels that the run has made of its data."""
    (file,) = (run / "labels").glob("*.parquet")
    return {name: list(map(str, column)) for name, column in pq.read_table(file).to_pydict().items()}


def metrics_lines(run: Path) -> list[dict]:
    """What the run has logged, without times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
