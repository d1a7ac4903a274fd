"""The fields of the ``pi05_rl`` policy: stock π0.5's, sizes as data, the critic, the advantage, the schedule."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from .advantage import OF_YOUR_OWN, PolicyExtraction, extraction_names, find_extraction
from .options import ACTOR, CRITIC, DATA, LEARNING, NOTE, OFFLINE, ONLINE, OTHER_RUN, START, check_options, option

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's
BASELINES = ("success", "all")  # of advantage_baseline
NOT_THREADS = "learner and actor are processes with threads inside"
ATTENTION_HEADS = 8  # of the joint attention of LeRobot's π0.5, which is not configurable
TASKS_TOKENIZER = "tasks"  # value of `tokenizer`: build a small one from the dataset's tasks


@dataclass
class ActorLearnerConfig:
    """Where the online learner listens and how often it pushes weights (names as in LeRobot's RL configs)."""

    learner_host: str = option("127.0.0.1", NOTE, ONLINE)
    learner_port: int = option(50051, NOTE, ONLINE, least=0, most=65535)
    policy_parameters_push_frequency: float = option(4, NOTE, ONLINE, above=0)  # seconds
    # Seconds; LeRobot's RL configs carry it.
    queue_get_timeout: float = option(2, advice="nothing polls a queue")
    # Any other address than loopback needs a shared secret and TLS. The secret stays out of the configuration, which
    # every checkpoint carries: it is the text of this file, or the environment variable PI05_RL_TOKEN.
    token_file: str | None = option(None, NOTE, ONLINE)
    tls_certificate: str | None = option(None, NOTE, ONLINE)  # PEM; the learner's, and what its actors trust
    tls_key: str | None = option(None, NOTE, ONLINE)  # PEM; the learner's alone
    # float32 or bfloat16: what weights travel as; None: as policy.dtype computes.
    push_dtype: str | None = option(None, NOTE, ONLINE, choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        check_options(self, "policy.actor_learner_config")


@dataclass
class ConcurrencyConfig:
    """Threads or processes for the online actor and learner (names as in LeRobot's RL configs)."""

    actor: str = option("threads", advice=NOT_THREADS)
    learner: str = option("threads", advice=NOT_THREADS)
    multiprocessing_context: str | None = option(
        "spawn", advice=f"{NOT_THREADS}; the data loader's is dataloader_multiprocessing_context"
    )


@PreTrainedConfig.register_subclass("pi05_rl")
@dataclass
class PI05RLConfig(PI05Config):
    """π0.5 plus a value critic and an advantage tag (RECAP, arXiv 2511.14759).

    Defaults are stock π0.5 at full size; every size is a field, so that a 1 M parameter model is the same code.
    """

    # What to start from: a directory or Hub id of a stock π0.5 or of one of our checkpoints. None: random weights.
    pi05_checkpoint: str | None = option(None, START)
    task: str | None = option(None, OTHER_RUN)  # replaces the dataset's task text when set

    # Sizes. Source of the defaults: lerobot/policies/pi05/modeling_pi05.py (get_gemma_config) and PaliGemma's
    # vision config. Depth, head size and key-value heads are shared by both towers; 8 heads are fixed by the
    # joint attention of LeRobot's π0.5.
    llm_width: int = option(2048, OTHER_RUN, least=1, size=ACTOR)
    llm_mlp_dim: int = option(16_384, OTHER_RUN, least=1, size=ACTOR)
    expert_width: int = option(1024, OTHER_RUN, least=1, size=ACTOR)
    expert_mlp_dim: int = option(4096, OTHER_RUN, least=1, size=ACTOR)
    llm_depth: int = option(18, OTHER_RUN, least=1, size=ACTOR)
    head_dim: int = option(256, OTHER_RUN, least=1, size=ACTOR)
    num_kv_heads: int = option(1, OTHER_RUN, least=1, size=ACTOR)
    vision_width: int = option(1152, OTHER_RUN, least=1, size=ACTOR)
    vision_mlp_dim: int = option(4304, OTHER_RUN, least=1, size=ACTOR)
    vision_depth: int = option(27, OTHER_RUN, least=1, size=ACTOR)
    vision_heads: int = option(16, OTHER_RUN, least=1, size=ACTOR)
    vision_patch_size: int = option(14, OTHER_RUN, least=1, size=ACTOR)
    vocab_size: int = option(257_152, OTHER_RUN, least=1, size=ACTOR)

    # A Hub id, a local directory, or "tasks" (a small word tokenizer built from the dataset's tasks).
    tokenizer: str = option("google/paligemma-3b-pt-224", OTHER_RUN)

    # Parts that train, chosen by module (freeze_vision_encoder and train_expert_only are stock fields).
    # Language layers below this one, and the token embedding if it is above 0, stay frozen.
    train_language_from_layer: int = option(0, OTHER_RUN)

    # Critic
    num_value_bins: int = option(201, OTHER_RUN, least=2, size=CRITIC)  # RECAP, section IV-B
    value_support_min: float = option(-1.0, LEARNING)  # RECAP: returns normalised to [-1, 0]
    value_support_max: float = option(0.0, LEARNING)
    # σ / bin width; 0: two-hot. Farebrother et al. 2024 (arXiv 2403.03950).
    hl_gauss_sigma_ratio: float = option(0.75, LEARNING, least=0)
    # A separate critic has critic_llm_depth language layers of its own. A shared one (false) reads what that many of
    # the actor's layers make of the observation: cheaper by far, but its features are the actor's. Null, in
    # checkpoints of the first version, is true.
    use_separate_critic: bool | None = option(True, OTHER_RUN, size=CRITIC)
    critic_llm_depth: int = option(2, OTHER_RUN, size=CRITIC)
    # Of a separate critic's low-rank adapters, through which it reads the actor's own layers; 0: layers of its own.
    critic_adapter_rank: int = option(0, OTHER_RUN, least=0, size=CRITIC)
    num_value_queries: int = option(4, OTHER_RUN, least=1, size=CRITIC)
    # A separate critic reads the mean of each square of so many by so many image tokens; 1: every token. Two by two
    # costs a third and labels as well (docs/results.md).
    critic_image_pooling: int = option(2, OTHER_RUN, least=1, size=CRITIC)
    # Critics, each blind to its part of the episodes and asked about that part alone (cross-fitting); 1: one critic,
    # which also labels the episodes it has learnt from.
    critic_folds: int = option(3, OTHER_RUN, least=1, size=CRITIC)
    # monte_carlo: RECAP. td: n_step rewards and a Polyak target's value.
    critic_target: str = option("monte_carlo", OTHER_RUN, choices=("monte_carlo", "td"))
    n_step: int = option(10, LEARNING, least=1)  # of critic_target td
    # Of critic_target td, per critic update.
    critic_target_update_weight: float = option(0.005, LEARNING, least=0, most=1)
    # Held-out evaluations without a new best cross-entropy after which the critic's best weights are restored and it
    # stops; None: it trains to the end (and a warning says when it overfits).
    critic_early_stop: int | None = option(None, LEARNING, least=1)
    train_critic: bool = option(True, OTHER_RUN)  # false: only with dataset.labeling, whose tags need no critic

    # Advantage
    # conditioning: RECAP. weighted: AWR (arXiv 1910.00177). filtered: cloning of the good part. none: cloning. Or one
    # of your own (docs/extending.md).
    policy_extraction: str = option("conditioning", DATA, choices=extraction_names, more=OF_YOUR_OWN)
    # Of filtered: outcome (successful episodes) | advantage (positive frames).
    filter_by: str = option("outcome", DATA, choices=("outcome", "advantage"))
    # Of weighted, in standard deviations of the task's advantages.
    awr_temperature: float = option(1.0, LEARNING, above=0)
    awr_max_weight: float = option(20.0, LEARNING, above=0)  # of weighted; AWR's own limit
    # once: the critics learn alone for critic_warmup_steps, then label the run's own data once, each the episodes that
    # it has not seen, and the policy trains under those labels. running: both train side by side, and each batch is
    # labelled by the critic of the moment. dataset.labeling stands in for either. Online, once is: the offline data
    # before the first step, and every episode when it arrives.
    advantage_labels: str = option("once", OTHER_RUN, choices=("once", "running"))
    # What a return is compared with in labels that are made once. success: the critic's expectation of a success from
    # there, so that an episode's luck in succeeding counts for none of its actions, and no failed one is positive
    # (docs/results.md). all: RECAP's V. None: success, unless rewards are the dataset's own.
    advantage_baseline: str | None = option(None, LEARNING, choices=BASELINES)
    # N of RECAP, section IV-C; None: advantage_horizon, or, of running labels, the whole rest of the episode.
    advantage_n_step: int | None = option(None, LEARNING, least=1)
    # N of labels that are made once, as a share of the task's longest episode; None: the whole rest of the episode.
    # docs/results.md says why, of both.
    advantage_horizon: float | None = option(0.25, LEARNING, above=0, most=1)
    # Each of those advantages is the mean over the frames around, so many: a share of the task's longest episode.
    advantage_smoothing: float = option(0.2, LEARNING, least=0, most=1)
    advantage_positive_fraction: float = option(0.2, LEARNING, least=0, most=1)
    # Task text → fraction.
    advantage_positive_fraction_per_task: dict[str, float] = option(dict, LEARNING, least=0, most=1)
    # Share of the positive tags that are hidden.
    advantage_dropout: float = option(0.1, LEARNING, least=0, most=1)
    # How much more a positive action counts than another: under dataset.labeling it is drawn so many times as often,
    # else its loss weighs so much more. The critic never sees it, nor do the samples without a tag. 1: RECAP.
    advantage_positive_weight: float = option(50.0, DATA, least=1)
    # Recent advantages per task from which the threshold is taken.
    advantage_window: int = option(4096, OTHER_RUN, least=1)
    # positive | none (or, of an extraction of your own, negative): the tag that actions are asked for with.
    inference_advantage: str = option("positive", NOTE, choices=("positive", "negative", "none"), acts=True)
    # β of classifier-free guidance on the tag (RECAP, App. E); 1: plain conditioning.
    guidance_scale: float = option(5.0, NOTE, least=0, acts=True)

    # Schedule
    offline_steps: int = option(10_000, LEARNING, OFFLINE, least=1)
    offline_buffer_capacity: int | None = option(None, DATA, least=1)  # cap on the transitions drawn from; None: all
    policy_update_freq: int = option(1, LEARNING, least=1)  # the actor trains every so many steps
    # The actor waits that long: for the run's own labels, so that it does not online or under dataset.labeling; or,
    # where labels are running, in any run. None: a fifth of a run that labels its own data, else 0.
    critic_warmup_steps: int | None = option(None, LEARNING, least=0)
    utd_ratio: int = option(1, LEARNING, least=1)  # critic updates per step, each on a fresh batch
    gradient_accumulation_steps: int = option(1, LEARNING, least=1)

    # torch.compile mode of compile_model (a stock field), which compiles single layers for training and sampling.
    # Stock's max-autotune tries many kernels for each matrix product: minutes, of every start.
    compile_mode: str = option("default", NOTE, choices=COMPILE_MODES)

    # Optimisation; None: π0.5's own preset (optimizer_lr, optimizer_grad_clip_norm)
    actor_lr: float | None = option(None, LEARNING, least=0)
    scheduler_decay_lr: float = option(
        0.0, LEARNING, least=0
    )  # where optimizer_lr ends; stock π0.5's is a tenth of it
    critic_lr: float = option(5e-5, LEARNING, least=0)
    grad_clip_norm: float | None = option(None, LEARNING, above=0)

    # Rewards of `reward.source: dataset`
    discount: float = option(1.0, LEARNING, least=0, most=1)
    reward_normalization_constant: float = option(1.0, LEARNING, above=0)
    terminal_failure_reward: float = option(0.0, LEARNING)

    # Online (the learner and the actor read these)
    online_steps: int = option(1_000_000, LEARNING, ONLINE, least=1)
    online_buffer_capacity: int = option(100_000, LEARNING, ONLINE, least=1)
    # Transitions of whole episodes before the first update.
    online_step_before_learning: int = option(100, LEARNING, ONLINE, least=0)
    # The learner waits rather than make more updates per online transition than this; None: as many as it can.
    online_updates_per_transition: float | None = option(None, LEARNING, ONLINE, above=0)
    # Episodes between videos with the critic's value drawn into them; 0: none.
    episode_logging_freq: int = option(50, NOTE, ONLINE, least=0)
    actor_learner_config: ActorLearnerConfig = field(default_factory=ActorLearnerConfig)
    concurrency: ConcurrencyConfig = field(default_factory=ConcurrencyConfig)
    learner_device: str | None = option(None, NOTE)
    actor_device: str | None = option(None, NOTE, ONLINE)

    # Carried by configs of earlier π0.5 RL learners.
    advantage_scaling: float | None = option(
        None, advice="the advantage is a tag, not a number: set policy.advantage_positive_fraction"
    )
    storage_device: str | None = option(
        None, advice="frames stay in the dataset's own files and are decoded when drawn"
    )
    async_prefetch: bool | None = option(None, advice="num_workers and prefetch_factor of the data loader prefetch")

    # Publishing needs a repo_id; people who train on their own robot rarely want it by default.
    push_to_hub: bool = option(False, advice="save_checkpoint_to_hub=true sends each checkpoint to policy.repo_id")

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
        check_options(self, "policy")
        self._check_values_together()

    def _check_values_together(self) -> None:
        if self.value_support_min >= self.value_support_max:
            raise ValueError(
                f"policy.value_support_min ({self.value_support_min}) must be below "
                f"policy.value_support_max ({self.value_support_max})"
            )
        for name, least in (("critic_llm_depth", 1), ("train_language_from_layer", 0)):
            layer = getattr(self, name)
            if not least <= layer <= self.llm_depth:
                raise ValueError(
                    f"policy.{name} must be between {least} and llm_depth ({self.llm_depth}), got {layer}"
                )
        if not self.use_separate_critic and self.critic_llm_depth == self.llm_depth:
            raise ValueError(
                f"policy.critic_llm_depth must be below llm_depth ({self.llm_depth}) with use_separate_critic=false: "
                "the output of the actor's last language layer is never computed"
            )
        if not self.use_separate_critic and self.critic_adapter_rank:
            raise ValueError(
                f"policy.critic_adapter_rank is {self.critic_adapter_rank}, and use_separate_critic false: that "
                "critic has no layers to adapt; leave one of them out"
            )
        self.extraction.inference_tag()  # it may know that nobody learns such a tag
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
    def label_horizon(self) -> float | None:
        """The share of a task's longest episode that N follows from; None: ``advantage_n_step``, or the rest of it."""
        return self.advantage_horizon if self.advantage_n_step is None else None

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
    """Configs of earlier learners give a number (1.0: act as if the advantage were high, 0: as ever)."""
    try:
        number = float(value)
    except ValueError:
        return str(value).lower()
    return "positive" if number > 0 else "none" if number == 0 else "negative"
