"""The least that a training step can cost, by formula: each product that a loss needs once forward, each that a
trainable weight's gradient needs once backward. One critic learning from the return; everything trains."""

from dataclasses import dataclass

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig

HEADS = 8  # of both towers and of the shared critic


@dataclass(frozen=True)
class _Layer:
    """A transformer layer's widths."""

    width: int
    attended: int  # heads · head size
    key_value: int  # key-value heads · head size
    mlp: int

    def key_values(self, tokens: int) -> int:
        return 2 * tokens * self.width * 2 * self.key_value

    def rest(self, tokens: int, keys: int) -> int:
        """Query, attention over ``keys`` tokens, output and gated feed-forward of ``tokens`` tokens."""
        products = 2 * self.attended + 3 * self.mlp
        return 2 * tokens * self.width * products + 4 * tokens * keys * self.attended

    def whole(self, tokens: int, keys: int) -> int:
        return self.key_values(tokens) + self.rest(tokens, keys)


def minimum_flops(config: PI05RLConfig, cameras: int, text: int) -> int:
    """FLOPs of one sample, forward and backward (with the critic unless ``config`` clones)."""
    actor = _vision(config, cameras) + _language(config, cameras, text) + _actions(config, cameras, text)
    return actor + (_critic(config, cameras, text) if config.trains_critic else 0)


def _vision(config: PI05RLConfig, cameras: int) -> int:
    tokens, width = config.image_grid**2, config.vision_width
    layer = 2 * tokens * width * (4 * width + 2 * config.vision_mlp_dim) + 4 * tokens**2 * width
    projection = 2 * tokens * width * config.llm_width
    patches = 2 * tokens * width * 3 * config.vision_patch_size**2  # nobody needs the gradient of a picture
    return cameras * (3 * (config.vision_depth * layer + projection) + 2 * patches)


def _language(config: PI05RLConfig, cameras: int, text: int) -> int:
    """Of the last layer, actions read keys and values alone."""
    layer, prefix = _tower(config), _prefix(config, cameras, text)
    below = (config.llm_depth - 1) * layer.whole(prefix, prefix)
    return 3 * (below + layer.key_values(prefix)) + _rotary(config, prefix)


def _actions(config: PI05RLConfig, cameras: int, text: int) -> int:
    width, steps, actions = config.expert_width, config.chunk_size, config.max_action_dim
    layer = _Layer(width, HEADS * config.head_dim, config.num_kv_heads * config.head_dim, config.expert_mlp_dim)
    keys = _prefix(config, cameras, text) + steps
    norms = (2 * config.llm_depth + 1) * 2 * width * 3 * width  # scale, shift and gate from the time embedding
    inputs = 2 * steps * actions * width + 2 * width**2  # noisy actions and the time's sines: no gradient of them
    outputs = 2 * steps * actions * width + 2 * width**2
    return 3 * (config.llm_depth * layer.whole(steps, keys) + norms + outputs) + 2 * inputs + _rotary(config, steps)


def _critic(config: PI05RLConfig, cameras: int, text: int) -> int:
    width, queries = config.llm_width, config.num_value_queries
    head = 3 * 2 * queries * width * config.num_value_bins
    if not config.use_separate_critic:
        read = _prefix(config, cameras, text)
        projections = 2 * (2 * read + 2 * queries) * width**2
        return head + 3 * (projections + 4 * queries * read * width + 2 * queries * 2 * 4 * width**2)
    layer = _tower(config)
    read = cameras * (config.image_grid // config.critic_image_pooling) ** 2 + text
    below = layer.whole(read, read) + layer.whole(queries, read + queries)
    last = layer.key_values(read + queries) + layer.rest(queries, read + queries)
    # What it reads is detached, but the first norm's weight needs the gradient of what the norm gives all the same.
    return head + 3 * ((config.critic_llm_depth - 1) * below + last) + _rotary(config, read + queries)


def _rotary(config: PI05RLConfig, tokens: int) -> int:
    """Positions times frequencies, which nothing learns."""
    return config.head_dim * tokens


def _tower(config: PI05RLConfig) -> _Layer:
    size = config.head_dim
    return _Layer(config.llm_width, HEADS * size, config.num_kv_heads * size, config.llm_mlp_dim)


def _prefix(config: PI05RLConfig, cameras: int, text: int) -> int:
    return cameras * config.image_grid**2 + text
