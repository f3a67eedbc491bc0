"""serve: every engine with devices of its own gets copies of the model that fit them."""

from ...specs.hardware import ACCELERATORS
from ...specs.model import Spec
from ..compilation import Compilation, mistake
from ..estimates.quantity import with_unit
from ..estimates.serving import LARGEST_COPY, serving, smallest_copy
from .roles import ROLES_OF


def serve(compilation: Compilation) -> Compilation:
    """Choose how many devices hold one copy, where the spec leaves it open."""
    spec, model = compilation.spec, compilation.dimensions
    if spec is None:
        return compilation
    accelerator = ACCELERATORS[spec.cluster.accelerator]
    context = longest_context(spec)
    for kind, names in ROLES_OF.items():
        for name in names:
            role = getattr(getattr(spec.placement, kind), name, None)
            if role is None:
                continue
            path = ("placement", kind, name)
            size = smallest_copy(model, accelerator, role.devices, context) if model is not None else 1
            if role.tensor != "auto":
                size = role.tensor if model is None or serving(model, accelerator, role.tensor, context).sequences != 0 else None
            if size is None:
                assert model is not None
                each = serving(model, accelerator, LARGEST_COPY if role.tensor == "auto" else role.tensor, context)
                needed = with_unit(each.weights.value + each.cache.value, "bytes")
                detail = f"weights and the cache of one episode of {context} tokens take {needed} on each device of a copy"
                fix = "`tensor: auto`" if role.tensor != "auto" else "a multiple of 8 devices, or a shorter `context_tokens`"
                compilation = compilation.with_mistakes(mistake("E0507", path, detail, fix, at_key=True))
            elif role.tensor == "auto":
                reason = f"the fewest devices that hold a copy with an episode of {context} tokens"
                compilation = compilation.decided((*path, "tensor"), size, by="serve", reason=reason)
    return compilation


def longest_context(spec: Spec) -> int:
    """Tokens of the longest episode."""
    return max((domain.limits.context_tokens for domain in spec.domains.values() if domain.limits is not None), default=1)
