"""Several devices on a machine that has none: tensors that say where they lie and refuse what real devices refuse.

``with SeveralDevices():`` makes ``ipu:0``, ``ipu:1``, ... usable. Every value is computed on the CPU, by torch's own
operators. An operator whose tensors lie on different devices fails, as it would on GPUs; `Tensor.to` carries a value
over, and its gradient back. So a model that accelerate has dispatched over them shows every step that forgets where its
tensors are. What it cannot show is what CUDA itself does: memory, streams, kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "ipu"  # torch knows the name, and needs no driver for it
CPU = torch.device("cpu")
SMALL_INDEX = ("aten::index", "aten::index_put", "aten::index_put_")  # their indices may lie on the CPU


class Elsewhere(Tensor):
    """A tensor on ``place``; its values are in ``inner``, on the CPU."""

    inner: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, place: torch.device) -> Elsewhere:
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **options, device="cpu")  # type: ignore[attr-defined]
        made.inner, made.place = inner, place
        return made

    def __init__(self, inner: Tensor, place: torch.device) -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{self.inner!r} on {self.place}"


class SeveralDevices(TorchFunctionMode):
    """See the module. Modules get new parameters when they move; Adam's fused kernels are allowed on them."""

    def __enter__(self) -> SeveralDevices:
        from torch.optim import optimizer

        self._below = _Dispatch()
        self._before = torch.__future__.get_overwrite_module_params_on_conversion()
        self._supported = optimizer._get_fused_kernels_supported_devices  # type: ignore[attr-defined]
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        optimizer._get_fused_kernels_supported_devices = lambda: [*self._supported(), KIND]  # type: ignore[attr-defined]
        self._below.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        from torch.optim import optimizer

        super().__exit__(*error)
        self._below.__exit__(*error)
        optimizer._get_fused_kernels_supported_devices = self._supported  # type: ignore[attr-defined]
        torch.__future__.set_overwrite_module_params_on_conversion(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cpu:
            return _moved(args[0], ["cpu"], {})
        if func is Tensor.tolist:
            return func(_values(args[0]))
        if func is torch.tensor:  # made below all modes
            place = kwargs.pop("device", None)
            return func(*args, **kwargs).to(place or CPU)
        return _moved(args[0], list(args[1:]), kwargs) if func is Tensor.to else func(*args, **kwargs)


def place_of(tensor: Tensor) -> torch.device:
    """Where a tensor says it lies."""
    return tensor.place if isinstance(tensor, Elsewhere) else tensor.device


def _moved(tensor: Tensor, rest: list[Any], options: dict[str, Any]) -> Tensor:
    """``tensor.to(*rest, **options)``."""
    place = options.pop("device", None)
    options.pop("non_blocking", None)
    if rest and isinstance(rest[0], Tensor):
        place, rest[0] = place_of(rest[0]), rest[0].dtype
    elif rest and isinstance(rest[0], str | torch.device):
        place = rest.pop(0)
    rest = [one for one in rest if isinstance(one, torch.dtype)]
    place = place_of(tensor) if place is None else torch.device(place)
    if tensor.is_meta or place.type == "meta":
        return torch.empty_like(_values(tensor), device=place)
    if place != place_of(tensor):
        tensor = _Carried.apply(tensor, place)  # type: ignore[no-untyped-call]
    return tensor.to(*rest, **options) if rest or options else tensor


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: torch.device) -> Tensor:
        ctx.place = place_of(tensor)
        return _carried(tensor, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _carried(gradients[0], ctx.place), None


def _carried(tensor: Tensor, place: torch.device) -> Tensor:
    values = _values(tensor).detach().clone()
    return Elsewhere(values, place) if place.type == KIND else values


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _values(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, Elsewhere) else tensor


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator makes of its arguments, on the device of its tensors or the one that it is asked for."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    asked = kwargs.get("device")
    place = _common(func, args, tensors) if asked is None else asked
    inner = kwargs if asked is None or asked.type != KIND else {**kwargs, "device": CPU}
    known = {id(_values(one)): one for one in tensors}

    def own(one: Any) -> Any:
        return _values(one) if isinstance(one, Tensor) else one

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor) or id(one) in known:  # in place: the same tensor
            return known.get(id(one), one)
        return Elsewhere(one, place) if place.type == KIND else one

    return tree_map(wrapped, func(*tree_map(own, args), **tree_map(own, inner)))


def _common(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> torch.device:
    """Where all ``tensors`` lie; RuntimeError where they lie apart. A number on the CPU goes with every device."""
    name = func._schema.name
    if name == "aten::copy_":
        return place_of(args[0])
    if name.startswith(("aten::_foreach", "aten::_fused")):
        lists = [[place_of(one) for one in group] for group in args if isinstance(group, list | tuple)]
        apart = [group for group in zip(*(one for one in lists if one), strict=False) if len(set(group)) > 1]
        places = {place for group in lists for place in group} if apart else {place_of(one) for one in tensors[:1]}
    else:
        places = {place_of(one) for one in tensors if one.dim() or isinstance(one, Elsewhere)}
        if name in SMALL_INDEX:
            places = places - {CPU} or places
    if len(places) > 1:
        raise RuntimeError(f"{func}: tensors on {', '.join(sorted(map(str, places)))}")
    return next(iter(places), CPU)
