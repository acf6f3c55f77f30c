"""The T5-shaped encoder-decoder inside the Grad-Transformer: sizes from scratch, or the weights of a T5 folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gradtf_fl.adapters import model_folder
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

    @classmethod
    def named(cls, name: str) -> Backbone:
        """One of `SIZES`, or the weights of a local folder or hub id."""
        return SIZES[name] if name in SIZES else cls(pretrained=name)


SIZES = {
    "small": Backbone(512, 1024, 6, 64, 8, 8),
    "base": Backbone(768, 2048, 12, 64, 12, 12),
    "large": Backbone(1024, 2816, 16, 64, 24, 24),
}
"""T5 v1.1's and Flan-T5's sizes, from scratch and without their vocabulary."""


def build_t5(backbone: Backbone) -> Any:
    """The T5Model of ``backbone``; nothing reads its vocabulary, so that is cut to 8 tokens.

    Raises:
        ConfigError: ``pretrained`` can't be loaded, is not a T5, lacks weights, or differs from T5 v1.1 in more than
            its sizes (a checkpoint stores sizes only).
    """
    from transformers import T5Config, T5Model

    if backbone.pretrained is not None:
        return _pretrained(backbone.pretrained, backbone.dropout)
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


_SAME = ("feed_forward_proj", "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")


def _pretrained(name: str, dropout: float) -> Any:
    from transformers import AutoConfig, T5Config, T5Model

    folder = model_folder(name, "backbone")
    try:
        config: Any = AutoConfig.from_pretrained(folder)
        if config.model_type != "t5":
            raise ConfigError(f"it is a {config.model_type!r} model; expected a 't5'")
        wanted: Any = T5Config(feed_forward_proj="gated-gelu")
        problems = [
            f"{field} is {getattr(config, field)!r}, not {getattr(wanted, field)!r} as in T5 v1.1 and Flan-T5"
            for field in _SAME
            if getattr(config, field) != getattr(wanted, field)
        ]
        if problems:
            raise ConfigError(problems)
        t5, found = T5Model.from_pretrained(folder, dtype="float32", dropout_rate=dropout, output_loading_info=True)
        if found["missing_keys"]:
            raise ConfigError(f"weights are missing, e.g. {sorted(found['missing_keys'])[0]}")
        t5.resize_token_embeddings(8)
    except ConfigError as error:
        raise ConfigError([f"backbone {name!r}: {problem}" for problem in error.problems]) from None
    except Exception as error:  # the library raises many kinds: all mean that this backbone can't be loaded
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"backbone {name!r} can't be loaded: {cause}") from error
    return t5
