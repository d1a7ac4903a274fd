"""A run labels its own data, once: its critics have learnt, its policy has not (RECAP, arXiv 2511.14759, section IV).
An online run does so before its first step, with the critics of the checkpoint that it starts from.

``<run>/labels`` holds a side-car per dataset as :mod:`..data.labeling` writes them; it is there when all are whole.
Until then ``<run>/labels.partial`` holds the values so far, of as many processes as there were.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.critic_provenance import critic_fingerprint
from ..config.train import PI05RLTrainConfig
from ..data.batch import Batch
from ..data.labeling import RUN_LABELS, read_meta, write_labeling
from ..data.sources import Source, dataset_fingerprint
from ..errors import UserError
from ..runtime.files import give_name, make_folder
from ..training.start import Run, label_differences
from .making import AskedCritic, Values, make_labelings, source_values
from .options import LabelOptions
from .summary import label_table
from .values import PartialValues, Timing

logger = logging.getLogger(__name__)

UNSAVED = "unsaved"  # fingerprint of a critic of which there is no checkpoint


def label_run(run: Run, critic: str | Path | None, seen: dict[str, Any] | None) -> None:
    """Make ``<run>/labels``, unless this critic has made them. Every process calls it, and values its share.

    Args:
        critic: the folder or Hub repository with the critics' weights as they are; None: they lie nowhere.
        seen: the episodes that each of them has learnt from.

    Raises:
        Interrupted: a signal came; the values so far are kept.
    """
    algorithm, processes = run.algorithm, run.algorithm.processes
    finished, unfinished = run.cfg.run_dir / RUN_LABELS, run.cfg.run_dir / f"{RUN_LABELS}.partial"
    identity = processes.once(partial(critic_identity, run, critic))
    if processes.once(partial(made_by, finished, identity["fingerprint"], run.cfg)):
        logger.info("%s The labels of these critics are there: %s", run.cfg.tag, finished)
        return
    logger.info(
        "%s Labelling the run's own data with its critics at step %d", run.cfg.tag, algorithm.optimization_step
    )
    training = algorithm.losses.training
    algorithm.losses.eval()
    with written(run, finished):
        values = ask(run, identity, seen, unfinished)
        processes.once(partial(write_labels, run, values, unfinished, finished))
    algorithm.losses.train(training)


@contextmanager
def written(run: Run, labels: Path) -> Iterator[None]:
    """
    Raises:
        UserError: the disk takes no more; what is on it stays.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the labels {labels} cannot be written: {error.strerror}. Make room; --resume=true goes on from here"
        ) from error


def ask(run: Run, identity: dict[str, Any], seen: dict[str, Any] | None, unfinished: Path) -> list[Values]:
    """Per dataset the values of all frames.

    Args:
        identity: the critics' path and fingerprint.
        seen: the episodes that each of them has learnt from.

    Raises:
        Interrupted: a signal came.
    """
    algorithm, processes = run.algorithm, run.algorithm.processes
    asked = AskedCritic(identity, run.data.policy.critic_folds, seen, algorithm.preprocess, partial(predict, run))
    timing, values = Timing(), []
    for number, source in enumerate(run.data.sources):
        values.append(
            source_values(
                asked,
                run.data.sources,
                run.data.labels,
                number,
                partial_values(unfinished, number, source, asked, processes.rank),
                run.stop,
                policy=run.data.policy,
                batch_size=run.cfg.batch_size,
                workers=run.data.workers,
                timing=timing,
                processes=processes,
                device=next(algorithm.policy.parameters()).device,
            )
        )
    logger.info("%s %s", run.cfg.tag, timing)
    return values


def critic_identity(run: Run, critic: str | Path | None) -> dict[str, Any]:
    """What the labels say of the critics: where they lie, and their fingerprint."""
    if critic is None:
        return {"path": str(run.cfg.run_dir), "fingerprint": UNSAVED}
    policy = run.data.policy
    return {
        "path": str(Path(critic).absolute() if Path(critic).exists() else critic),
        "fingerprint": critic_fingerprint(critic, (policy.value_support_min, policy.value_support_max)),
    }


def made_by(labels: Path, fingerprint: str, cfg: PI05RLTrainConfig) -> bool:
    """Whether ``labels`` are there, of this critic and with these settings. Others, of a course that the run has left,
    go."""
    if not labels.is_dir():
        return False
    makers = {read_meta(path)["critic"]["fingerprint"] for path in labels.glob("*.parquet")}
    if makers == {fingerprint} and fingerprint != UNSAVED and not label_differences(cfg, labels):
        return True
    logger.info("Removing %s: other critics have made them, or other settings", labels)
    shutil.rmtree(labels)
    return False


@torch.no_grad()
def predict(run: Run, batch: Batch) -> torch.Tensor:
    """(B, K, 2) values; a pass that sharded processes run together."""
    return run.algorithm.losses.run(run.algorithm.policy.predict_label_values, batch)


def partial_values(folder: Path, number: int, source: Source, critic: AskedCritic, rank: int) -> PartialValues:
    """The values of source ``number`` as far as they are there; what another critic has left is forgotten."""
    return PartialValues(
        folder / f"{number}.values",
        dataset=dataset_fingerprint(source),
        critic=critic.identity["fingerprint"],
        critics=critic.folds,
        rank=rank,
        replaces=True,
    )


def write_labels(run: Run, values: list[Values], unfinished: Path, finished: Path) -> None:
    """Advantages, thresholds, tags; the folder gets its name when all side-cars are whole."""
    cfg, sources = run.cfg, run.data.sources
    name = f"{cfg.run_dir.absolute().name}-{run.algorithm.optimization_step:06d}"
    labelings, thresholds = make_labelings(cfg, LabelOptions(), sources, run.data.labels, values, name)
    make_folder(unfinished)
    for number, (source, labeling) in enumerate(zip(sources, labelings, strict=True)):
        write_labeling(unfinished / f"{number}-{source.name.replace('/', '-')}.parquet", labeling)
    for file in unfinished.glob("*.values*"):
        file.unlink()
    give_name(unfinished, finished)
    label_table([labeling.columns for labeling in labelings], thresholds, title=f"labels of {cfg.run_dir}")
    logger.info("%s Labels: %s", cfg.tag, finished)
