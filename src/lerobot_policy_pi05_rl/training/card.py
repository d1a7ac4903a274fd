"""What a run knows of the checkpoint that it is about to save, for the card beside it. Nothing is read or computed."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot.common.train_utils import get_step_checkpoint_dir
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from ..cards.model import DataRow, Feature, ModelFacts, OnlineEpisodes, model_card
from ..cards.text import hub_id, public_name
from ..config.leaves import differing
from ..config.train import PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..data.dataset import OfflineData
from ..data.episodes import Episode
from ..options import ACTOR, DATA, LEARNING, OTHER_RUN
from ..returns import Outcome
from .start import Run

DISTRIBUTION = "lerobot_policy_pi05_rl"
# What another value means for a run that goes on, of the keys that a card shows. The others are other ways to the same
# weights: folders, addresses, devices, W&B, of which a stranger has nothing.
TELLS = frozenset({LEARNING, DATA, OTHER_RUN})


def checkpoint_card(
    run: Run, held_out: tuple[int, dict[str, float]] | None, online: OnlineEpisodes | None = None
) -> str:
    """The card of the run's present state.

    Args:
        held_out: step and numbers of the last held-out evaluation.
        online: what actors have sent so far.
    """
    algorithm = run.algorithm
    cfg, policy, step = run.record(None), algorithm.policy.config, algorithm.optimization_step
    folder = get_step_checkpoint_dir(Path(), cfg.total_steps, step) / PRETRAINED_MODEL_DIR
    base, tag = policy.pi05_checkpoint, policy.inference_advantage
    numbers = {name: sum(p.numel() for p in parameters) for name, parameters in algorithm.parameters.items()}
    settings, sizes = shown_settings(cfg)
    return model_card(
        ModelFacts(
            name=cfg.run_name,
            license=policy.license,
            tags=tuple(policy.tags or ()),
            repo_id=policy.repo_id if cfg.save_checkpoint_to_hub else None,
            folder=folder.as_posix(),
            base=None if base is None else public_name(base),
            base_model=None if base is None or Path(base).exists() else hub_id(str(base)),
            extraction=policy.policy_extraction,
            datasets=tuple(data_rows(run.data)),
            tasks=tuple(run.data.labels.tasks),
            outcomes_known=policy.extraction.needs_outcomes,
            robot_type=run.data.sources[0].dataset.meta.robot_type,
            fps=run.data.sources[0].dataset.meta.fps,
            inputs=features(policy.input_features),
            outputs=features(policy.output_features),
            trains=trained_parts(algorithm.policy),
            parameters=numbers | {"total": sum(p.numel() for p in algorithm.policy.parameters())},
            adapter=algorithm.policy.adapter is not None,
            step=step,
            total_steps=cfg.total_steps,
            policy_waits=policy.trains_critic and step <= (policy.critic_warmup_steps or 0),
            batch_size=cfg.batch_size,
            processes=algorithm.processes.count,
            accumulation=policy.gradient_accumulation_steps,
            settings=settings,
            sizes=sizes,
            held_out=held_out,
            online=online,
            env_type=None if cfg.env is None else cfg.env.type,
            tag=tag if policy.extraction.shows_tag and tag != "none" else None,
            guidance_scale=policy.guidance_scale,
            version=version(DISTRIBUTION),
            lerobot_version=version("lerobot"),
        )
    )


def data_rows(data: OfflineData) -> list[DataRow]:
    """Each dataset as the run uses it."""

    def of(episodes: list[Episode], source: int) -> list[Episode]:
        return [episode for episode in episodes if episode.source == source]

    rows = []
    for number, source in enumerate(data.sources):
        episodes, trained = of(data.labels.episodes, number), of(data.train.frames.episodes, number)
        held_out = [] if data.held_out is None else of(data.held_out.frames.episodes, number)
        outcomes = Counter(episode.outcome for episode in episodes)
        rows.append(
            DataRow(
                name=public_name(source.name),
                hub_id=None if Path(source.name).is_dir() else hub_id(source.name),
                episodes=len(episodes),
                success=outcomes[Outcome.SUCCESS],
                failure=outcomes[Outcome.FAILURE],
                truncated=outcomes[Outcome.TRUNCATED],
                trained=len(trained),
                held_out=len(held_out),
                frames=sum(episode.length for episode in trained),
            )
        )
    return rows


def features(declared: dict[str, Any] | None) -> tuple[Feature, ...]:
    """What the policy reads or does, in the configuration's order."""
    return tuple(Feature(name, each.type.value, tuple(each.shape)) for name, each in (declared or {}).items())


def shown_settings(cfg: PI05RLTrainConfig) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Key and value of what differs from the defaults and changes what is learnt, or how it acts; and apart from it
    the network's sizes."""
    settings, sizes = [], []
    for leaf, value in differing(cfg, TELLS, cfg.reads):
        of_actor = leaf.option is not None and leaf.option.size == ACTOR
        (sizes if of_actor else settings).append((leaf.name, shown(value)))
    return tuple(settings), tuple(sizes)


def shown(value: Any) -> str:
    """A setting's value for strangers: of a path what :func:`~..cards.text.public_name` leaves of it."""
    if isinstance(value, str):
        return public_name(value) if value.startswith(("/", "~", "..")) else value
    return json.dumps(value, ensure_ascii=False)


def trained_parts(policy: PreTrainedPolicy) -> str:
    """In words, what of the policy learns."""
    config: PI05RLConfig = policy.config
    if policy.adapter is not None:
        actor = f"a LoRA adapter of rank {policy.adapter.model.peft_config['default'].r} on the policy"
    elif config.train_expert_only:
        actor = "the action expert"
    else:
        frozen = ["the vision encoder"] if config.freeze_vision_encoder else []
        first = config.train_language_from_layer
        frozen += [f"the language layers below {first}"] if first else []
        actor = f"the policy but for {' and '.join(frozen)}" if frozen else "the whole policy"
    return f"{actor}, and the critic" if config.trains_critic else f"{actor}; no critic"
