"""Which parameters train, chosen by module."""

from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from ..stored.files import CRITIC_PREFIX


def select_trainable(policy: PreTrainedPolicy) -> dict[str, list[nn.Parameter]]:
    """Set ``requires_grad`` as the configuration says and return the groups "actor" and "critic".

    With a PEFT adapter the actor's group is the adapter alone, the critic's is the same.
    """
    critic_module = policy.model.critic
    if policy.adapter is None:
        policy.requires_grad_(True)
    else:  # PEFT has frozen all but the adapter
        policy.requires_grad_(False)
        for name in policy.adapter.names:
            policy.get_parameter(name).requires_grad_(True)
    if critic_module is not None:
        critic_module.requires_grad_(policy.config.trains_critic)
    for module in frozen_modules(policy):
        module.requires_grad_(False)
    critic = [] if critic_module is None else [p for p in critic_module.parameters() if p.requires_grad]
    critic_ids = {id(parameter) for parameter in critic}
    actor = [p for p in policy.parameters() if p.requires_grad and id(p) not in critic_ids]
    return {"actor": actor, "critic": critic}


def frozen_modules(policy: PreTrainedPolicy) -> list[nn.Module]:
    """The actor's modules that never train.

    Besides what ``freeze_vision_encoder``, ``train_expert_only`` and ``train_language_from_layer`` name: the parts of
    the last language layer (and the final norm) that only serve outputs nobody reads, since the actions attend to
    that layer's keys and values alone. They would hold optimizer state for nothing.
    """
    config, language = policy.config, policy.model.language_model
    last = language.layers[-1]
    frozen = [
        last.self_attn.q_proj,
        last.self_attn.o_proj,
        last.post_attention_layernorm,
        last.mlp,
        language.norm,
    ]
    if config.freeze_vision_encoder:
        frozen.append(policy.model.vision_tower)
    if config.train_expert_only:
        frozen.append(policy.model.paligemma_with_expert.paligemma)
    if config.train_language_from_layer > 0:
        frozen += [language.embed_tokens, *language.layers[: config.train_language_from_layer]]
    return frozen


def pushed_tensors(policy: PreTrainedPolicy) -> dict[str, Tensor]:
    """The actor's tensors that train, live and by name: what an actor cannot have from the checkpoint.

    Under an adapter that is the adapter alone; of a policy that started from random weights it is everything, since
    no checkpoint has what does not train. The critic stays with the learner.
    """
    everything = policy.config.pi05_checkpoint is None
    return {
        name: parameter.detach()
        for name, parameter in policy.named_parameters()
        if (parameter.requires_grad or everything) and not name.startswith(CRITIC_PREFIX)
    }
