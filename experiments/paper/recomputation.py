"""The peer of generation with a key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtf_fl.transformer import GradTransformerModel


def recomputed(model: GradTransformerModel, updates: Tensor, encoder_too: bool) -> Tensor:
    """LLM updates as `GradTransformerModel.forward` makes them, without a cache: for each block the decoder runs over
    all blocks before it, and with ``encoder_too`` the encoder runs too."""
    memory, made = model.encode(updates)[0], []
    embedded = [model.start.expand(len(updates), 1, -1)]
    for block in range(model.target_blocks):
        if encoder_too:
            memory = model.encode(updates)[0]
        inputs = torch.cat(embedded, 1) + model.target_position[: block + 1]
        states = model.t5.decoder(inputs_embeds=inputs, encoder_hidden_states=memory, use_cache=False)
        made.append(model.output(states.last_hidden_state[:, -1:]))
        embedded.append(model.target_embedding(made[-1]))
    return torch.cat(made, 1) * model.target_scale + model.target_mean
