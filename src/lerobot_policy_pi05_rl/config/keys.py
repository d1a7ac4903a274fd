"""Every key of the configuration by its name: who reads it, or what answers it, and what another value means for a
resumed run. It is said beside the fields (:mod:`..options`)."""

from ..options import ACTOR, CRITIC, FREE, GRAVITY, INHERITED, LEARNING, RUNS, Option
from .leaves import leaves
from .train import PI05RLTrainConfig

KEYS: dict[str, Option] = INHERITED | {
    leaf.node: leaf.option for leaf in leaves(PI05RLTrainConfig) if leaf.option is not None
}
POLICY = {name.removeprefix("policy."): key for name, key in KEYS.items() if name.startswith("policy.")}


def _sizes(whose: str) -> tuple[str, ...]:
    return tuple(name for name, key in POLICY.items() if key.size == whose)


# Fields that the shapes of a checkpoint's tensors and what its networks read depend on, and of its chunks.
ACTOR_SIZES, CRITIC_SIZES = _sizes(ACTOR), _sizes(CRITIC)
SIZE_FIELDS = (*ACTOR_SIZES, *_sizes(FREE), *CRITIC_SIZES)
# Fields of the policy, and its sections, that may change between two starts of a learner: an actor does not care.
LEARNERS_OWN = {name.partition(".")[0] for name, key in POLICY.items() if key.learners_own}
ACTED_WITH = sorted(name for name, key in POLICY.items() if key.acts)


def entry(name: str) -> str | None:
    """The key or node of :data:`KEYS` that speaks for ``name``; None: nothing does."""
    parts = name.split(".")
    return next((node for length in range(len(parts), 0, -1) if (node := ".".join(parts[:length])) in KEYS), None)


def on_resume(name: str) -> str:
    """What another value means for a run that goes on; of a node the gravest of all below it."""
    node = entry(name)
    if node is not None:
        return KEYS[node].on_resume
    below = [key.on_resume for own, key in KEYS.items() if own.startswith(f"{name}.")]
    return max(below, key=GRAVITY.index, default=LEARNING)


def readers(name: str) -> str:
    """Who reads a key."""
    node = entry(name)
    return RUNS if node is None else KEYS[node].readers
