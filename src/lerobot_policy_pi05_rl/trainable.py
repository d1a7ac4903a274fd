"""Which parameters train, chosen by module."""

from torch import nn

from .modeling_pi05_rl import PI05RLPolicy


def select_trainable(policy: PI05RLPolicy) -> dict[str, list[nn.Parameter]]:
    """Set ``requires_grad`` as the configuration says and return the groups "actor" and "critic".

    Frozen besides what ``freeze_vision_encoder``, ``train_expert_only`` and ``train_language_from_layer`` name:
    the parts of the last language layer (and the final norm) that only serve outputs nobody reads, since the
    actions attend to that layer's keys and values alone. They would hold optimizer state for nothing.
    """
    config, model = policy.config, policy.model
    policy.requires_grad_(True)
    language = model.language_model
    last = language.layers[-1]
    frozen: list[nn.Module] = [
        last.self_attn.q_proj,
        last.self_attn.o_proj,
        last.post_attention_layernorm,
        last.mlp,
        language.norm,
    ]
    if config.freeze_vision_encoder:
        frozen.append(model.vision_tower)
    if config.train_expert_only:
        frozen.append(model.paligemma_with_expert.paligemma)
    if config.train_language_from_layer > 0:
        frozen += [language.embed_tokens, *language.layers[: config.train_language_from_layer]]
    if not config.trains_critic and model.critic is not None:
        frozen.append(model.critic)
    for module in frozen:
        module.requires_grad_(False)
    critic = [] if model.critic is None else [p for p in model.critic.parameters() if p.requires_grad]
    critic_ids = {id(parameter) for parameter in critic}
    actor = [p for p in policy.parameters() if p.requires_grad and id(p) not in critic_ids]
    return {"actor": actor, "critic": critic}
