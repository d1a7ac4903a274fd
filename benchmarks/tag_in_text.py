"""Ablation: the advantage tag written into the prompt, as in the paper, in place of an attention block of its own.

    python benchmarks/tag_in_text.py train CONFIG --dataset.labeling=NAME [--key=value …]
    python benchmarks/tag_in_text.py lerobot_policy_pi05_rl.demo.evaluate PATH [options of that module]

Images, prompt and tag are then one bidirectional block: every image token sees the tag, and a prefix has to be
computed anew for every tag. All else is as ``pi05-rl offline``: labels, dropout of the tag, weight of the positive
frames. The checkpoint's preprocessor asks for the positive tag.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lerobot.processor import ComplementaryDataProcessorStep, PolicyProcessorPipeline, ProcessorStepRegistry

from lerobot_policy_pi05_rl.advantage import TAG_NONE, TAG_POSITIVE
from lerobot_policy_pi05_rl.command.run import set_up_logging
from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import changed, resolved
from lerobot_policy_pi05_rl.data.batch import POSITION, PRECOMPUTED_TAG
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.offline_learner import training_batches
from lerobot_policy_pi05_rl.processor_pi05_rl import TAG_TEXTS, PreparePromptStep
from lerobot_policy_pi05_rl.training import loop
from lerobot_policy_pi05_rl.training.start import make_writer, start

ACTION_WORD = "Action: "  # the end of π0.5's prompt


@ProcessorStepRegistry.register(name="pi05_rl_tag_in_text")
@dataclass
class TagInTextStep(ComplementaryDataProcessorStep):
    """Writes the tags of the batch in front of the prompt's last word; ``tags`` None: the positive one."""

    def __post_init__(self) -> None:
        self.tags: list[int] | None = None

    def complementary_data(self, complementary_data: dict) -> dict:
        """``task`` with the tag."""
        prompts = complementary_data["task"]
        tags = [TAG_POSITIVE] * len(prompts) if self.tags is None else self.tags
        tagged = [
            prompt if tag == TAG_NONE else f"{prompt.removesuffix(ACTION_WORD)}{TAG_TEXTS[tag]}, {ACTION_WORD}"
            for prompt, tag in zip(prompts, tags, strict=True)
        ]
        return {**complementary_data, "task": tagged}

    def transform_features(self, features: dict) -> dict:
        """Unchanged."""
        return features


def tag_step(preprocessor: PolicyProcessorPipeline) -> TagInTextStep:
    """The step of a preprocessor; inserted behind the prompt's if it is not there."""
    for step in preprocessor.steps:
        if isinstance(step, TagInTextStep):
            return step
    behind = next(i for i, step in enumerate(preprocessor.steps) if isinstance(step, PreparePromptStep)) + 1
    preprocessor.steps = [*preprocessor.steps[:behind], TagInTextStep(), *preprocessor.steps[behind:]]
    return preprocessor.steps[behind]


def train(arguments: list[str]) -> Path | None:
    """:func:`lerobot_policy_pi05_rl.offline_learner.train_offline` with the tag in the text."""
    path, overrides = split_config_path(arguments)
    cfg = load_config(path, [*overrides, "--policy.inference_advantage=none", "--policy.train_critic=false"])
    cfg = resolved(cfg)
    with_dropout = cfg.policy
    run = start(changed(cfg, policy=changed(cfg.policy, advantage_dropout=1.0)))  # no tag block: the text says it
    step = tag_step(run.processors[0])
    run.algorithm.preprocess = with_tags(run.algorithm.preprocess, step, cfg.seed, with_dropout)
    writer = make_writer(run)
    try:
        return loop.train(run, loop.Feed(training_batches(run)), writer)
    finally:
        writer.close()


def with_tags(preprocess: Callable[[dict], dict], step: TagInTextStep, seed: int, policy) -> Callable[[dict], dict]:
    """``preprocess`` with each sample's tag in its text, dropped where a tag block would have been."""

    def tagged(samples: dict) -> dict:
        dropped = sample_noise(seed, samples[POSITION], policy).dropped
        step.tags = samples[PRECOMPUTED_TAG].masked_fill(dropped, TAG_NONE).tolist()
        return preprocess(samples)

    return tagged


if __name__ == "__main__":
    verb, rest = sys.argv[1], sys.argv[2:]
    set_up_logging()
    if verb == "train":
        logging.getLogger(__name__).info("Done: %s", train(rest))
    else:
        importlib.import_module(verb).main(rest)
