"""The Grad-Transformer: an encoder-decoder over blocks that generates an LLM update from a TinyLM update.

Paper, equations (4)-(9) and (11): each block's update vector is a token. Source blocks [L1, n1] and target blocks
[L2, n2] have their own embeddings into the width of a T5-shaped transformer; the decoder generates target blocks one
after the other, starting from a learned token that is the same in training and in generation. Other tokens than
blocks come from a partition (`partition`); each part has embeddings and an output of its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradtf_fl.adapters import BlockLayout
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer.backbone import Backbone, build_t5
from gradtf_fl.transformer.partition import Part, Partition, Partitioning, PartitionPlan

SCALE_FLOOR = 1e-4
"""Guards the scale of matrices that never move."""


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
            scale[:, start:stop] = rms.clamp(min=SCALE_FLOOR)
        return cls(mean, scale)

    @classmethod
    def identity(cls, blocks: int, dim: int) -> Standardisation:
        """Leaves values as they are: mean 0, scale 1."""
        return cls(torch.zeros(blocks, dim), torch.ones(blocks, dim))

    @classmethod
    def for_layout(cls, updates: Tensor, layout: BlockLayout) -> Standardisation:
        """`fit` on a layout; matrices outside the layers have a scale of their own in each row they reach into."""
        fitted = cls.fit(updates, [(slot.start, slot.stop) for slot in layout.slots])
        spread = (updates - fitted.mean).square().mean(0)
        for slot in layout.extra:
            for row in range(slot.start // layout.block_dim, -(-slot.stop // layout.block_dim)):
                first = row * layout.block_dim
                inside = slice(max(0, slot.start - first), min(layout.block_dim, slot.stop - first))
                rms = spread[layout.layers + row, inside].mean().sqrt()
                fitted.scale[layout.layers + row, inside] = rms.clamp(min=SCALE_FLOOR)
        return fitted


class BlockSequence(nn.Module):
    """One encoder-decoder from standardised source parts [B, T, n] to standardised target parts.

    Parts follow each other in one sequence; only the embeddings and the output differ from part to part.
    """

    def __init__(self, backbone: Backbone, source: Sequence[Part], target: Sequence[Part]) -> None:
        super().__init__()
        self.t5 = build_t5(backbone)
        width = int(self.t5.config.d_model)
        self._lengths = [part.tokens for part in target]
        self.source_embedding = nn.Linear(source[0].chunk, width)  # equation (6)
        self.target_embedding = nn.Linear(target[0].chunk, width)  # equation (7)
        self.source_position = nn.Parameter(torch.randn(sum(part.tokens for part in source), width) * 0.02)
        self.target_position = nn.Parameter(torch.randn(sum(self._lengths), width) * 0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.output = _output(width, target[0].chunk)  # equation (9)
        self.more_source_embeddings = nn.ModuleList(nn.Linear(part.chunk, width) for part in source[1:])
        self.more_target_embeddings = nn.ModuleList(nn.Linear(part.chunk, width) for part in target[1:])
        self.more_outputs = nn.ModuleList(_output(width, part.chunk) for part in target[1:])
        for number, part in enumerate(target):  # what a token is filled up with stays zero when it is generated
            self.register_buffer(f"mask_{number}", part.mask, persistent=False)

    def memory(self, source: Sequence[Tensor]) -> Tensor:
        """Hidden states [B, sum of T, width] of the encoder."""
        embeddings = (self.source_embedding, *self.more_source_embeddings)
        hidden = torch.cat([embed(part) for embed, part in zip(embeddings, source, strict=True)], 1)
        states: Tensor = self.t5.encoder(inputs_embeds=hidden + self.source_position).last_hidden_state
        return states

    def _decode(self, inputs: Tensor, memory: Tensor, cache: Any = None) -> Tensor:
        states: Tensor = self.t5.decoder(
            inputs_embeds=inputs, encoder_hidden_states=memory, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return states

    def _project(self, part: int, states: Tensor, tokens: slice) -> Tensor:
        """Tokens [B, T, n] of a target part from hidden states; ``tokens`` are their places in the part."""
        output = self.output if part == 0 else self.more_outputs[part - 1]
        projected: Tensor = output(states)
        mask: Tensor | None = getattr(self, f"mask_{part}")
        return projected if mask is None else projected * mask[tokens]

    def forced(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> list[Tensor]:
        """Predictions of the target parts, each token given the TRUE tokens before it (equation (8))."""
        embeddings = (self.target_embedding, *self.more_target_embeddings)
        embedded = torch.cat([embed(part) for embed, part in zip(embeddings, target, strict=True)], 1)
        start = self.start.expand(len(embedded), 1, -1)
        inputs = torch.cat([start, embedded[:, :-1]], 1) + self.target_position
        states = torch.split(self._decode(inputs, self.memory(source)), self._lengths, 1)
        return [self._project(number, part, slice(None)) for number, part in enumerate(states)]

    def generated(self, memory: Tensor) -> list[Tensor]:
        """The target parts, token by token, each given the GENERATED tokens before it (equation (11)).

        ``memory`` is the encoder's. A key-value cache makes the decoder's cost linear in the number of tokens;
        gradients flow through all of it.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        hidden, position, parts = self.start.expand(len(memory), 1, -1), 0, []
        for number, (embed, length) in enumerate(
            zip((self.target_embedding, *self.more_target_embeddings), self._lengths, strict=True)
        ):
            tokens = []
            for place in range(length):
                states = self._decode(hidden + self.target_position[position], memory, cache)
                tokens.append(self._project(number, states, slice(place, place + 1)))
                hidden, position = embed(tokens[-1]), position + 1
            parts.append(torch.cat(tokens, 1))
        return parts


class GradTransformerModel(BlockSequence):
    """The trainable module. Inputs and outputs are raw update vectors; standardisation and partition happen inside.

    Without ``partitioning`` each row is a token. Per projection there are several transformers: the first is this
    module's own, the rest are in ``others``; they are trained together and share nothing.
    """

    source_mean: Tensor
    source_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        backbone: Backbone,
        source: Standardisation,
        target: Standardisation,
        partitioning: Partitioning | None = None,
    ) -> None:
        if partitioning is None:
            whole = [Partition.whole(*side.mean.shape) for side in (source, target)]
            partitioning = Partitioning(PartitionPlan(), *whole)
        for side, values in ((partitioning.source, source), (partitioning.target, target)):
            if values.mean.shape != (side.blocks, side.block_dim):
                raise ConfigError(
                    f"standardisation is {tuple(values.mean.shape)}, wanted {side.blocks, side.block_dim}"
                )
        self_route, *routes = partitioning.routes
        parts = partitioning.source.parts, partitioning.target.parts
        super().__init__(backbone, [parts[0][n] for n in self_route.source], [parts[1][n] for n in self_route.target])
        self.partitioning = partitioning
        self.target_blocks = partitioning.target.blocks
        for name, values in (("source", source), ("target", target)):
            self.register_buffer(f"{name}_mean", values.mean.clone())
            self.register_buffer(f"{name}_scale", values.scale.clone())
        self.others = nn.ModuleList(
            BlockSequence(backbone, [parts[0][n] for n in route.source], [parts[1][n] for n in route.target])
            for route in routes
        )

    def _sequences(self) -> list[tuple[BlockSequence, tuple[int, ...], tuple[int, ...]]]:
        """Each transformer with the places of its source and target parts; the targets follow each other in order."""
        sequences = [self, *cast("Sequence[BlockSequence]", self.others)]
        routes = self.partitioning.routes
        return [(sequence, route.source, route.target) for sequence, route in zip(sequences, routes, strict=True)]

    def _source_parts(self, updates: Tensor) -> list[Tensor]:
        return self.partitioning.source.split((updates - self.source_mean) / self.source_scale)

    def teacher_forced(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Standardised predictions [B, L2, n2], each block given the TRUE blocks before it (equation (8))."""
        return self._forced(updates, (targets - self.target_mean) / self.target_scale)

    def _forced(self, updates: Tensor, standardised: Tensor) -> Tensor:
        source, target = self._source_parts(updates), self.partitioning.target.split(standardised)
        predicted: list[Tensor] = []
        for sequence, reads, writes in self._sequences():
            predicted += sequence.forced([source[n] for n in reads], [target[n] for n in writes])
        return self.partitioning.target.join(predicted)

    def mse(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Equation (10) on standardised values, so that no block or matrix drowns another."""
        view = self.partitioning.target
        standardised = view.join(view.split((targets - self.target_mean) / self.target_scale))
        return (self._forced(updates, standardised) - standardised).square().mean()

    def forward(self, updates: Tensor) -> Tensor:
        """Generate LLM updates [B, L2, n2], block by block, each given the GENERATED blocks before it (equation (11)).

        Gradients flow through all of it. Trailing rows are zero where they are only filled up.
        """
        return self.generate_from(self.encode(updates))

    def encode(self, updates: Tensor) -> list[Tensor]:
        """What each transformer's encoder makes of updates [B, L1, n1]: its hidden states [B, T, width]."""
        source = self._source_parts(updates)
        return [sequence.memory([source[n] for n in reads]) for sequence, reads, _ in self._sequences()]

    def generate_from(self, memories: Sequence[Tensor]) -> Tensor:
        """LLM updates [B, L2, n2] from the encoders' hidden states (see `encode`)."""
        made: list[Tensor] = []
        for (sequence, _, _), memory in zip(self._sequences(), memories, strict=True):
            made += sequence.generated(memory)
        return self.partitioning.target.join(made) * self.target_scale + self.target_mean


def _output(width: int, dim: int) -> nn.Linear:
    output = nn.Linear(width, dim)
    nn.init.normal_(output.weight, std=width**-0.5)
    nn.init.zeros_(output.bias)
    return output
