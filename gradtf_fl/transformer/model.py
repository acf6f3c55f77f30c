"""The Grad-Transformer: an encoder-decoder over blocks that generates an LLM update from a TinyLM update.

Paper, equations (4)-(9) and (11): each block's update vector is a token. Source blocks [L1, n1] and target blocks
[L2, n2] have their own embeddings into the width of a T5-shaped transformer; the decoder generates target blocks one
after the other, starting from a learned token that is the same in training and in generation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtf_fl.errors import ConfigError


@dataclass(frozen=True)
class Backbone:
    """Shape of the T5 encoder-decoder. ``pretrained`` (a path or hub id, e.g. Flan-T5) overrides the sizes."""

    width: int = 192
    feed_forward: int = 384
    heads: int = 4
    head_dim: int = 32
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.0
    pretrained: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Standardisation:
    """(x - mean) / scale; mean and scale are [blocks, dim], learnt from the tuples and kept in the checkpoint."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, updates: Tensor, slots: list[tuple[int, int]]) -> Standardisation:
        """From updates [N, blocks, dim]: mean per coordinate, root mean square per block and parameter matrix.

        ``slots`` are (start, stop) of each parameter matrix within a block. One scale for a whole matrix keeps the
        coordinates' relative sizes; a floor guards matrices that never move.
        """
        mean = updates.mean(0)
        spread = (updates - mean).square().mean(0)  # [blocks, dim]
        scale = torch.empty_like(mean)
        for start, stop in slots:
            rms = spread[:, start:stop].mean(1, keepdim=True).sqrt()
            scale[:, start:stop] = rms.clamp(min=1e-4)
        return cls(mean, scale)


class GradTransformerModel(nn.Module):
    """The trainable module. Inputs and outputs are raw update vectors; standardisation happens inside."""

    source_mean: Tensor
    source_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, backbone: Backbone, source: Standardisation, target: Standardisation) -> None:
        super().__init__()
        self.t5 = _t5(backbone)
        width = int(self.t5.config.d_model)
        for name, values in (("source", source), ("target", target)):
            self.register_buffer(f"{name}_mean", values.mean.clone())
            self.register_buffer(f"{name}_scale", values.scale.clone())
        (source_blocks, source_dim), (self.target_blocks, target_dim) = source.mean.shape, target.mean.shape
        self.source_embedding = nn.Linear(source_dim, width)  # equation (6)
        self.target_embedding = nn.Linear(target_dim, width)  # equation (7)
        self.source_position = nn.Parameter(torch.randn(source_blocks, width) * 0.02)
        self.target_position = nn.Parameter(torch.randn(self.target_blocks, width) * 0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.output = nn.Linear(width, target_dim)  # equation (9)
        nn.init.normal_(self.output.weight, std=width**-0.5)
        nn.init.zeros_(self.output.bias)

    def encode(self, updates: Tensor) -> Tensor:
        """Hidden states [B, L1, width] of TinyLM updates [B, L1, n1]."""
        standardised = (updates - self.source_mean) / self.source_scale
        hidden = self.source_embedding(standardised) + self.source_position
        states: Tensor = self.t5.encoder(inputs_embeds=hidden).last_hidden_state
        return states

    def _decode(self, inputs: Tensor, memory: Tensor, cache: Any = None) -> Tensor:
        states: Tensor = self.t5.decoder(
            inputs_embeds=inputs, encoder_hidden_states=memory, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        projected: Tensor = self.output(states)
        return projected

    def teacher_forced(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Standardised predictions [B, L2, n2], each block given the TRUE blocks before it (equation (8))."""
        standardised = (targets - self.target_mean) / self.target_scale
        shifted = self.target_embedding(standardised[:, :-1])
        start = self.start.expand(len(updates), 1, -1)
        return self._decode(torch.cat([start, shifted], 1) + self.target_position, self.encode(updates))

    def mse(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Equation (10) on standardised values, so that no block or matrix drowns another."""
        standardised = (targets - self.target_mean) / self.target_scale
        return (self.teacher_forced(updates, targets) - standardised).square().mean()

    def forward(self, updates: Tensor) -> Tensor:
        """Generate LLM updates [B, L2, n2], block by block, each given the GENERATED blocks before it (equation (11)).

        A key-value cache makes the cost linear in the number of blocks; gradients flow through all of it.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        memory = self.encode(updates)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = self.start.expand(len(updates), 1, -1)
        blocks = []
        for block in range(self.target_blocks):
            blocks.append(self._decode(token + self.target_position[block], memory, cache))
            token = self.target_embedding(blocks[-1])
        return torch.cat(blocks, 1) * self.target_scale + self.target_mean


def _t5(backbone: Backbone) -> Any:
    from transformers import T5Config, T5Model

    if backbone.pretrained is not None:
        try:
            return T5Model.from_pretrained(backbone.pretrained)
        except Exception as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"backbone {backbone.pretrained!r} can't be loaded: {cause}") from error
    return T5Model(
        T5Config(
            vocab_size=8,
            d_model=backbone.width,
            d_kv=backbone.head_dim,
            d_ff=backbone.feed_forward,
            num_layers=backbone.encoder_layers,
            num_decoder_layers=backbone.decoder_layers,
            num_heads=backbone.heads,
            dropout_rate=backbone.dropout,
            feed_forward_proj="gated-gelu",
        )
    )
