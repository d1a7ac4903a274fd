"""What a folder without usable weights is, and what to do with it. Nothing is unpickled, nothing is converted."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from safetensors import SafetensorError, safe_open

from ..errors import typed_line

ADAPTER_WEIGHTS = "adapter_model.safetensors"  # PEFT's own name
WEIGHTS = (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE, ADAPTER_WEIGHTS)
POLICY_NAMES = {"pi0": "π0", "pi0_fast": "π0-FAST", "smolvla": "SmolVLA", "act": "ACT"}
OURS = ("pi05", "pi05_rl")  # policy types whose weights these are
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PROCESSORS = "policy_*processor*"
PROCESSOR_CONFIGS = ("policy_preprocessor.json", "policy_postprocessor.json")
PROCESSORS_ADVICE = (
    "Copy policy_*processor* from another checkpoint of that run, or delete them and begin a run from these weights "
    "with pi05-rl offline, which writes processors with the statistics of its data"
)
_LAST = Path(CHECKPOINTS_DIR) / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
_CONVERT_PICKLE = (
    "import glob, torch; from safetensors.torch import save_file; save_file({{name: tensor.clone() for file in "
    "glob.glob({files!r}) for name, tensor in torch.load(file, map_location='cpu', weights_only=True).items()}}, "
    "{target!r})"
)


def why_no_weights(path: Path) -> str:
    """In words, what the existing ``path`` is instead of a checkpoint's folder, and what to do; never empty."""
    if path.is_file():
        folder = path.parent
        return f"it is a file; {f'give its folder, {folder}' if holds_weights(folder) else 'give a folder'}"
    nearby = nearby_checkpoint(path)
    if nearby is not None:
        return f"did you mean {nearby}?"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "the folder is empty"
    if {"params", "train_state", "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"} & set(names):
        return (
            "it is a JAX (orbax) checkpoint of openpi; convert it in openpi with `python "
            f"examples/convert_jax_model_to_pytorch.py --checkpoint_dir {path.resolve()} --config_name pi05_… "
            "--output_path FOLDER` and give that FOLDER"
        )
    kind = policy_kind(stored_type(path))
    if kind is not None:
        return f"it is of {kind}; a π0.5 is needed, such as lerobot/pi05_base"
    shards = [name for name in names if name.startswith("model-") and name.endswith(".safetensors")]
    if shards:
        return (
            f"it has parts ({shards[0]}, …) but no {SAFETENSORS_INDEX_FILE}, which says what lies where; copy that too"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"it has {pickles[0]}, a pickle, which may run code and is not read; convert it: {convert_pickle(path)}"
    if (path / "meta" / "info.json").is_file():
        return "it is a LeRobot dataset"
    return f"the folder holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def holds_weights(folder: Path) -> bool:
    """Whether a checkpoint's weights lie in ``folder``, whole or as an adapter."""
    return any((folder / name).is_file() for name in WEIGHTS)


def nearby_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that is meant by a run, its ``checkpoints``, one of them, or a repository in the Hub's cache."""
    steps = sorted((*folder.glob("*"), *folder.glob(f"{CHECKPOINTS_DIR}/*")), key=lambda path: path.name, reverse=True)
    candidates = [
        folder / PRETRAINED_MODEL_DIR,
        folder / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR,
        folder / _LAST,
        *(step / PRETRAINED_MODEL_DIR for step in steps if step.name.isdigit()),
        folder.parent / PRETRAINED_MODEL_DIR,
        *sorted(folder.glob("snapshots/*")),
    ]
    return next((candidate for candidate in candidates if holds_weights(candidate)), None)


def convert_pickle(folder: Path) -> str:
    """The command that writes the folder's pickled weights, in one file or several, as safetensors beside them."""
    pickle = next(path for path in sorted(folder.iterdir()) if path.name.endswith(PICKLES))
    pattern = f"{pickle.stem.split('-0')[0]}*{pickle.suffix}"
    code = _CONVERT_PICKLE.format(files=str(folder / pattern), target=str(folder / SAFETENSORS_SINGLE_FILE))
    return f'python -c "{code}"'


def stored_settings(folder: Path) -> dict[str, Any]:
    """The folder's config.json as it is written; empty where there is none that can be read."""
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def stored_type(folder: Path) -> str | None:
    """The policy type that the folder's config.json names; None where there is none."""
    stored = stored_settings(folder).get("type")
    return stored if isinstance(stored, str) else None


def policy_kind(policy_type: str | None) -> str | None:
    """The name of a policy that is no π0.5; None for π0.5 and where the type is unknown."""
    return None if policy_type is None or policy_type in OURS else POLICY_NAMES.get(policy_type, policy_type)


def damaged_processor_file(folder: Path) -> str | None:
    """The first processor file that is missing or cannot be read, and why; None where all can or it is no folder."""
    if not folder.is_dir():
        return None
    for name in PROCESSOR_CONFIGS:
        if not (folder / name).is_file():
            return f"there is no {name}"
    for file in sorted(folder.glob(PROCESSORS)):
        try:
            if file.suffix == ".json":
                steps = json.loads(file.read_text())["steps"]
                states = [step["state_file"] for step in steps if "state_file" in step]
                missing = [state for state in states if not (folder / state).is_file()]
                if missing:
                    return f"{file.name} names {missing[0]}, which is not there"
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return f"{file.name} cannot be read ({typed_line(error)})"
    return None
