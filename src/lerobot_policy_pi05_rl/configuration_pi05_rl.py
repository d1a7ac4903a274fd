"""The fields of the ``pi05_rl`` policy: stock π0.5's, sizes as data, the critic, the advantage, the schedule."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from .advantage import PolicyExtraction, extraction_names, find_extraction

INFERENCE_ADVANTAGES = ("positive", "negative", "none")
FILTERS = ("outcome", "advantage")
CRITIC_TARGETS = ("monte_carlo", "td")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's
LEAST_VALUES = {
    "offline_steps": 1,
    "policy_update_freq": 1,
    "utd_ratio": 1,
    "gradient_accumulation_steps": 1,
    "offline_buffer_capacity": 1,
    "advantage_window": 1,
    "num_value_queries": 1,
    "critic_image_pooling": 1,
    "num_value_bins": 2,
    "critic_folds": 1,
    "n_step": 1,
    "critic_early_stop": 1,
    "advantage_n_step": 1,
    "guidance_scale": 0,
    "hl_gauss_sigma_ratio": 0,
    **dict.fromkeys(("llm_width", "llm_mlp_dim", "llm_depth", "expert_width", "expert_mlp_dim", "head_dim"), 1),
    **dict.fromkeys(("num_kv_heads", "vision_width", "vision_mlp_dim", "vision_depth", "vision_heads"), 1),
    **dict.fromkeys(("vision_patch_size", "vocab_size", "chunk_size", "n_action_steps", "max_action_dim"), 1),
    **dict.fromkeys(("max_state_dim", "tokenizer_max_length", "num_inference_steps"), 1),
    **dict.fromkeys(("critic_warmup_steps", "online_step_before_learning", "episode_logging_freq"), 0),
    **dict.fromkeys(("online_steps", "online_buffer_capacity", "scheduler_decay_steps"), 1),
    **dict.fromkeys(("scheduler_warmup_steps", "scheduler_decay_lr", "optimizer_weight_decay", "actor_lr"), 0),
    **dict.fromkeys(("critic_lr", "empty_cameras"), 0),
}
ABOVE_ZERO = (
    *("awr_temperature", "awr_max_weight", "reward_normalization_constant", "optimizer_lr", "optimizer_eps"),
    *("optimizer_grad_clip_norm", "grad_clip_norm", "min_period", "max_period", "online_updates_per_transition"),
    *("time_sampling_beta_alpha", "time_sampling_beta_beta"),
)
ATTENTION_HEADS = 8  # of the joint attention of LeRobot's π0.5, which is not configurable
TASKS_TOKENIZER = "tasks"  # value of `tokenizer`: build a small one from the dataset's tasks


@dataclass
class ActorLearnerConfig:
    """Where the online learner listens and how often it pushes weights (names as in LeRobot's RL configs)."""

    learner_host: str = "127.0.0.1"
    learner_port: int = 50051
    policy_parameters_push_frequency: float = 4  # seconds
    queue_get_timeout: float = 2  # seconds; LeRobot's RL configs carry it, here nothing polls a queue
    # Any other address than loopback needs a shared secret and TLS. The secret stays out of the configuration, which
    # every checkpoint carries: it is the text of this file, or the environment variable PI05_RL_TOKEN.
    token_file: str | None = None
    tls_certificate: str | None = None  # PEM; the learner's, and what its actors trust
    tls_key: str | None = None  # PEM; the learner's alone
    # float32 or bfloat16: what weights travel as; None: as policy.dtype computes
    push_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.push_dtype not in (None, "float32", "bfloat16"):
            raise ValueError(
                f"policy.actor_learner_config.push_dtype must be float32 or bfloat16, got {self.push_dtype!r}"
            )


@dataclass
class ConcurrencyConfig:
    """Threads or processes for the online actor and learner (names as in LeRobot's RL configs)."""

    actor: str = "threads"
    learner: str = "threads"
    multiprocessing_context: str | None = "spawn"


@PreTrainedConfig.register_subclass("pi05_rl")
@dataclass
class PI05RLConfig(PI05Config):
    """π0.5 plus a value critic and an advantage tag (RECAP, arXiv 2511.14759).

    Defaults are stock π0.5 at full size; every size is a field, so that a 1 M parameter model is the same code.
    """

    # What to start from: a directory or Hub id of a stock π0.5 or of one of our checkpoints. None: random weights.
    pi05_checkpoint: str | None = None
    task: str | None = None  # replaces the dataset's task text when set

    # Sizes. Source of the defaults: lerobot/policies/pi05/modeling_pi05.py (get_gemma_config) and PaliGemma's
    # vision config. Depth, head size and key-value heads are shared by both towers; 8 heads are fixed by the
    # joint attention of LeRobot's π0.5.
    llm_width: int = 2048
    llm_mlp_dim: int = 16_384
    expert_width: int = 1024
    expert_mlp_dim: int = 4096
    llm_depth: int = 18
    head_dim: int = 256
    num_kv_heads: int = 1
    vision_width: int = 1152
    vision_mlp_dim: int = 4304
    vision_depth: int = 27
    vision_heads: int = 16
    vision_patch_size: int = 14
    vocab_size: int = 257_152

    # A Hub id, a local directory, or "tasks" (a small word tokenizer built from the dataset's tasks).
    tokenizer: str = "google/paligemma-3b-pt-224"

    # Parts that train, chosen by module (freeze_vision_encoder and train_expert_only are stock fields).
    # Language layers below this one, and the token embedding if it is above 0, stay frozen.
    train_language_from_layer: int = 0

    # Critic
    num_value_bins: int = 201  # RECAP, section IV-B
    value_support_min: float = -1.0  # RECAP: returns normalised to [-1, 0]
    value_support_max: float = 0.0
    hl_gauss_sigma_ratio: float = 0.75  # σ / bin width; Farebrother et al. 2024 (arXiv 2403.03950); 0: two-hot
    # A separate critic has critic_llm_depth language layers of its own. A shared one (false) reads what that many of
    # the actor's layers make of the observation: cheaper by far, but its features are the actor's.
    use_separate_critic: bool | None = True  # null, in checkpoints of the first version, is true
    critic_llm_depth: int = 6
    num_value_queries: int = 4
    # A separate critic reads the mean of each square of so many by so many image tokens; 1: every token. Two by two
    # costs a third and labels as well (docs/results.md).
    critic_image_pooling: int = 2
    # Critics, each blind to its part of the episodes and asked about that part alone (cross-fitting); 1: one critic,
    # which also labels the episodes it has learnt from.
    critic_folds: int = 1
    critic_target: str = "monte_carlo"  # monte_carlo (RECAP) | td: n_step rewards and a Polyak target's value
    n_step: int = 10  # of critic_target td
    critic_target_update_weight: float = 0.005  # of critic_target td, per critic update
    # Held-out evaluations without a new best cross-entropy after which the critic's best weights are restored and it
    # stops; None: it trains to the end (and a warning says when it overfits).
    critic_early_stop: int | None = None
    train_critic: bool = True  # false: only with dataset.labeling, whose tags need no critic

    # Advantage
    # conditioning: RECAP. weighted: AWR (arXiv 1910.00177). filtered: cloning of the good part. none: cloning. Or one
    # of your own (docs/extending.md).
    policy_extraction: str = "conditioning"
    filter_by: str = "outcome"  # of filtered: outcome (successful episodes) | advantage (positive frames)
    awr_temperature: float = 1.0  # of weighted, in standard deviations of the task's advantages
    awr_max_weight: float = 20.0  # of weighted; AWR's own limit
    advantage_n_step: int | None = None  # N of RECAP, section IV-C; None: the whole rest of the episode
    advantage_positive_fraction: float = 0.3  # RECAP, App. F
    advantage_positive_fraction_per_task: dict[str, float] = field(default_factory=dict)  # task text → fraction
    advantage_dropout: float = 0.3  # RECAP, section IV-C
    # How much more a positive action counts than another: under dataset.labeling it is drawn so many times as often,
    # else its loss weighs so much more. The critic never sees it. 1: RECAP. docs/results.md says why.
    advantage_positive_weight: float = 1.0
    advantage_window: int = 4096  # recent advantages per task from which the threshold is taken
    inference_advantage: str = "positive"  # positive | negative | none
    guidance_scale: float = 1.0  # β of classifier-free guidance on the tag (RECAP, App. E); 1: plain conditioning

    # Schedule
    offline_steps: int = 10_000
    offline_buffer_capacity: int | None = None  # cap on the transitions drawn from; None: all
    policy_update_freq: int = 1  # the actor trains every so many steps
    critic_warmup_steps: int = 0  # the actor waits that long
    utd_ratio: int = 1  # critic updates per step, each on a fresh batch
    gradient_accumulation_steps: int = 1

    # torch.compile mode of compile_model (a stock field), which compiles single layers for training and sampling.
    # Stock's max-autotune tries many kernels for each matrix product: minutes, of every start.
    compile_mode: str = "default"

    # Optimisation; None: π0.5's own preset (optimizer_lr, optimizer_grad_clip_norm)
    actor_lr: float | None = None
    critic_lr: float = 5e-5
    grad_clip_norm: float | None = None

    # Rewards of `reward.source: dataset`
    discount: float = 1.0
    reward_normalization_constant: float = 1.0
    terminal_failure_reward: float = 0.0

    # Online (the learner and the actor read these)
    online_steps: int = 1_000_000
    online_buffer_capacity: int = 100_000
    online_step_before_learning: int = 100  # transitions of whole episodes before the first update
    # The learner waits rather than make more updates per online transition than this; None: as many as it can.
    online_updates_per_transition: float | None = None
    episode_logging_freq: int = 50  # episodes between videos with the critic's value drawn into them; 0: none
    actor_learner_config: ActorLearnerConfig = field(default_factory=ActorLearnerConfig)
    concurrency: ConcurrencyConfig = field(default_factory=ConcurrencyConfig)
    learner_device: str | None = None
    actor_device: str | None = None

    # Carried by configs of earlier π0.5 RL learners; accepted with a warning (config.py says what replaces them).
    advantage_scaling: float | None = None
    storage_device: str | None = None
    async_prefetch: bool | None = None

    # Publishing needs a repo_id; people who train on their own robot rarely want it by default.
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.normalization_mapping = whole_mapping(self.normalization_mapping)
        self.pi05_checkpoint = self.pi05_checkpoint or None
        if self.pi05_checkpoint and not self.pretrained_path:
            # So that stock `lerobot-train --policy.pi05_checkpoint=…` loads it too.
            self.pretrained_path = Path(self.pi05_checkpoint)
        if self.use_separate_critic is None:
            self.use_separate_critic = True
        self.inference_advantage = _named_advantage(self.inference_advantage)
        _require_choice("inference_advantage", self.inference_advantage, INFERENCE_ADVANTAGES)
        _require_choice("policy_extraction", self.policy_extraction, extraction_names())
        _require_choice("critic_target", self.critic_target, CRITIC_TARGETS)
        _require_choice("filter_by", self.filter_by, FILTERS)
        _require_choice("compile_mode", self.compile_mode, COMPILE_MODES)
        shares = {
            f"advantage_positive_fraction_per_task[{task!r}]": fraction
            for task, fraction in self.advantage_positive_fraction_per_task.items()
        }
        for name in (
            "advantage_positive_fraction",
            "advantage_dropout",
            "discount",
            "critic_target_update_weight",
        ):
            shares[name] = getattr(self, name)
        for name, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"policy.{name} must be in [0, 1], got {value}")
        if not self.advantage_positive_weight >= 1:
            raise ValueError(
                f"policy.advantage_positive_weight must be at least 1, got {self.advantage_positive_weight}"
            )
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"policy.{name} must be above 0, got {value}")
        for name, least in LEAST_VALUES.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"policy.{name} must be at least {least}, got {value}")
        if self.value_support_min >= self.value_support_max:
            raise ValueError(
                f"policy.value_support_min ({self.value_support_min}) must be below "
                f"policy.value_support_max ({self.value_support_max})"
            )
        if not 1 <= self.critic_llm_depth <= self.llm_depth:
            raise ValueError(
                f"policy.critic_llm_depth must be between 1 and llm_depth ({self.llm_depth}), "
                f"got {self.critic_llm_depth}"
            )
        if not self.use_separate_critic and self.critic_llm_depth == self.llm_depth:
            raise ValueError(
                f"policy.critic_llm_depth must be below llm_depth ({self.llm_depth}) with use_separate_critic=false: "
                "the output of the actor's last language layer is never computed"
            )
        if not 0 <= self.train_language_from_layer <= self.llm_depth:
            raise ValueError(
                f"policy.train_language_from_layer must be between 0 and llm_depth ({self.llm_depth}), "
                f"got {self.train_language_from_layer}"
            )
        if self.image_resolution[0] != self.image_resolution[1]:
            raise ValueError(f"policy.image_resolution must be square, got {tuple(self.image_resolution)}")
        if self.image_resolution[0] % self.vision_patch_size:
            raise ValueError(
                f"policy.image_resolution {tuple(self.image_resolution)} is not a multiple of "
                f"policy.vision_patch_size ({self.vision_patch_size})"
            )
        divisors = (  # of LeRobot's towers: their attention heads, rotary embedding and embedding of time
            ("vision_width", self.vision_width, self.vision_heads, f"policy.vision_heads ({self.vision_heads})"),
            ("num_kv_heads", ATTENTION_HEADS, self.num_kv_heads, "it"),
            ("head_dim", self.head_dim, 2, "2"),
            ("expert_width", self.expert_width, 2, "2"),
        )
        for name, value, divisor, what in divisors:
            if value % divisor:
                raise ValueError(f"policy.{name} is {getattr(self, name)}, but {what} must divide {value}")
        if self.image_grid % self.critic_image_pooling:
            raise ValueError(
                f"policy.critic_image_pooling ({self.critic_image_pooling}) does not divide the {self.image_grid} "
                "image tokens of a row; set it to 1"
            )

    @property
    def image_grid(self) -> int:
        """Image tokens of a row, and of a column, of each camera."""
        return self.image_resolution[0] // self.vision_patch_size

    @property
    def extraction(self) -> PolicyExtraction:
        """What ``policy_extraction`` names: what is drawn, tagged, weighed and asked for (advantage.py)."""
        return find_extraction(self.policy_extraction)(self)

    @property
    def uses_advantage(self) -> bool:
        """Whether the policy learns from advantages, so that they must come from a critic or a labeling."""
        return self.extraction.needs_advantage

    @property
    def trains_critic(self) -> bool:
        """Whether a critic trains beside the policy."""
        return self.uses_advantage and self.train_critic

    @property
    def resolved_actor_lr(self) -> float:
        """Peak learning rate of the actor."""
        return self.optimizer_lr if self.actor_lr is None else self.actor_lr

    @property
    def resolved_grad_clip_norm(self) -> float:
        """Largest gradient norm, of each of the groups "actor" and "critic" by itself."""
        return self.optimizer_grad_clip_norm if self.grad_clip_norm is None else self.grad_clip_norm

    def get_optimizer_preset(self) -> AdamWConfig:
        """π0.5's AdamW with the actor's learning rate (what stock ``lerobot-train`` uses)."""
        preset = super().get_optimizer_preset()
        preset.lr = self.resolved_actor_lr
        preset.grad_clip_norm = self.resolved_grad_clip_norm
        return preset

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """π0.5's warm-up and cosine decay; the decay keeps the preset's ratio to the peak."""
        preset = super().get_scheduler_preset()
        preset.decay_lr = self.resolved_actor_lr * self.scheduler_decay_lr / self.optimizer_lr
        preset.peak_lr = self.resolved_actor_lr
        return preset


def whole_mapping(given: dict[str, NormalizationMode | str]) -> dict[str, NormalizationMode]:
    """``normalization_mapping`` with π0.5's own modes for the kinds of features that are left out.

    Raises:
        ValueError: a kind or a mode is unknown.
    """
    if not isinstance(given, dict):
        raise ValueError(f"policy.normalization_mapping must say a mode for each kind of feature; got {given!r}")
    (default,) = (field.default_factory() for field in fields(PI05Config) if field.name == "normalization_mapping")
    kinds, modes = [kind.value for kind in FeatureType], [mode.value for mode in NormalizationMode]
    mapping = dict(default)
    for kind, mode in given.items():
        if kind not in kinds:
            raise ValueError(f"policy.normalization_mapping has no key {kind!r}; it has {', '.join(default)}")
        mode = getattr(mode, "value", mode)
        if mode not in modes:
            raise ValueError(f"policy.normalization_mapping.{kind} must be one of {', '.join(modes)}; got {mode!r}")
        mapping[kind] = NormalizationMode(mode)
    return mapping


def _named_advantage(value: str | float) -> str:
    """Configs of earlier learners give a number (1.0: act as if the advantage were high)."""
    try:
        number = float(value)
    except ValueError:
        return str(value).lower()
    return "positive" if number > 0 else "negative"


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"policy.{name} must be one of {', '.join(choices)}; got {value!r}")
