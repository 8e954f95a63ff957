"""Low-rank factorisation by projecting a layer's outputs on their principal directions."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.dense import Dense
from autocomp.formats.factors import Factors
from autocomp.methods._hessian import cholesky, finite

RIDGE = 1e-9


@torch.no_grad()
def output_basis(weight: Tensor, stats: Stats | None, whitened: bool) -> Tensor:
    """Return the principal directions of the outputs, most important first; they serve every rank.

    These are the eigenvectors of ``W H Wᵀ`` (of ``W Wᵀ`` if not whitened), found on the smaller
    side: with ``H = S Sᵀ`` and more outputs than inputs, the eigenvectors V of ``(W S)ᵀ W S``
    give them as the orthonormalised columns of ``W S V``. Kept in ``stats.derived`` under the
    digest of the weight.

    Args:
        weight: (out, in).
        stats: Statistics; ``hessian`` (in, in) is read only if whitened.
        whitened: Weigh the inputs by H.

    Returns:
        (out, min(out, in)) fp64, orthonormal columns.

    Raises:
        NumericalError: If H is not finite.
    """
    if stats is None:
        return _basis(weight.double(), None)
    kind = "whitened" if whitened else "plain"
    content = weight.detach().cpu().contiguous().numpy().data
    key = f"output_basis/{kind}/{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    if key not in stats.derived:
        hessian = stats.hessian.double() if whitened and stats.hessian is not None else None
        stats.derived[key] = _basis(weight.double(), hessian)
    basis: Tensor = stats.derived[key]
    return basis


def _basis(weight: Tensor, hessian: Tensor | None) -> Tensor:
    """Return the principal output directions of an fp64 weight under fp64 second moments."""
    if weight.shape[0] <= weight.shape[1]:
        outputs = weight if hessian is None else weight @ hessian
        return torch.linalg.eigh(finite(outputs @ weight.T)).eigenvectors.flip(1)
    if hessian is not None:
        weight = weight @ cholesky(hessian, RIDGE, first=0.0)
    inputs = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1)
    return torch.linalg.qr(weight @ inputs).Q


@torch.no_grad()
def project(weight: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of ``U_k U_kᵀ W``.

    The scale is split evenly: column i of the left factor and row i of the right one have the
    same norm.

    Args:
        weight: (out, in).
        basis: (out, n) fp64, orthonormal columns, ``n ≥ rank``.
        rank: k.

    Returns:
        (out, k) and (k, in) in the dtype of the weight.
    """
    left = basis[:, :rank]
    right = left.T @ weight.double()
    balance = right.norm(dim=1).sqrt()
    balance = torch.where(balance > 0, balance, 1.0)
    return (left * balance).to(weight.dtype), (right / balance[:, None]).to(weight.dtype)


class FactorMethod(ABC):
    """What factorisations share: layout, packing, and which sites they apply to."""

    scope: ClassVar[Scope] = "site"
    formats: ClassVar[tuple[str, ...]] = ("factors",)
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    @abstractmethod
    def factors(self, weight: Tensor, spec: Any, stats: Stats | None) -> tuple[Tensor, Tensor]:
        """Return A (out, k) and B (k, in), fp32, with ``W ≈ A B``."""

    def layout(self, spec: Any, shape: tuple[int, int], dtype: str) -> Format:
        """Return the layout of two dense factors, from the shape (out, in) alone."""
        rank = spec.rank_for(shape)
        return Factors(shape, rank, Dense((shape[0], rank), dtype), Dense((rank, shape[1]), dtype))

    def compress(
        self, weight: Tensor, spec: Any, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the two factors in ``dtype``; ``weight`` is (out, in), fp32."""
        left, right = (
            Dense((len(part), part.shape[1]), dtype).pack(part)
            for part in self.factors(weight, spec, stats)
        )
        shape = weight.shape[0], weight.shape[1]
        return Factors(shape, right.layout.shape[0], left.layout, right.layout).pack(left, right)
