"""What the targets of a loss are like, deduced from the outputs and from the loss's gradient for them.

A recorder never sees the targets, but three losses give them away, and the loss itself proves the deduction:

- cross-entropy: target = softmax(output) - n gradient, with rows that sum to one;
- binary cross-entropy with logits: target = sigmoid(output) - n gradient;
- mean squared error: target = output - n gradient / 2.

n is the number of outputs averaged over, or 1 for a sum. A deduction counts as exact if the loss recomputed
from it is the loss that was seen, up to ``EXACT``. Of losses with weights of classes or of samples
(``weight=``, ``pos_weight=``) the sign of the gradient tells the class, and its size the weight. Of an
absolute error only the sign is left: whether outputs lie above or below their targets.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT, EXACT_UNTOLD = 0.01, 1e-3
"""A loss recomputed from the deduced targets may differ by this share, half precision considered; less where
nothing else says which loss it is.
"""
AGREED = 0.05
"""A loss's scale is a fact if it is the same in all observed steps, up to this share."""
EDGE = 0.05
"""A deduced target this far outside of [0, 1] may be rounding."""
SURE = 1e-3
"""Nearer to its target than this, a probability leaves too little gradient to read a weight from."""
FIRST, LATE = 4, 12
"""So many of the observed steps are the beginning, and the end, of a run."""
KEPT = 200
"""Observed steps whose sums are kept for the standard error."""
LARGEST_KEPT = 4096
"""Sums of more numbers than this are only pooled."""
_SCALING = ("Mul", "Div", "Add", "Sub")
"""Autograd operations by which a loss is scaled or joined by a penalty."""
_KINDS = {
    "NllLoss": "classes",
    "BinaryCrossEntropy": "binary",
    "MseLoss": "numbers",
    "Abs": "absolute",
    "L1Loss": "absolute",
}


@dataclass(frozen=True, eq=False)
class Observed:
    """One batch: ``kind`` of its loss (classes, binary, numbers, absolute), and what the targets turned out
    to be.

    ``mean_loss``: the mean loss of these outputs, weights included; ``exact``: whether the loss seen is that.
    ``mass`` (units, classes): weight of each class for each output unit, rows sum to one; of numbers ``sums``
    (3, units): count, sum and sum of squares. ``true``, ``predicted``, ``right``: samples of each class.
    ``floor``: the loss that perfect outputs would have left (soft labels).
    """

    kind: str
    loss: float
    mean_loss: float
    exact: bool
    samples: int
    mass: Tensor | None = None
    true: Tensor | None = None
    predicted: Tensor | None = None
    right: Tensor | None = None
    sums: Tensor | None = None
    low: float = math.nan
    high: float = math.nan
    floor: float = 0.0
    output_mean: float = math.nan
    output_std: float = math.nan
    moments: Tensor | None = None
    """Of numbers, (2, units): covariance of outputs and targets, variance of the outputs."""
    one_sided: float = math.nan
    """Of an absolute error: |mean sign| of output minus target, 1 if all outputs lie on the same side."""
    flat: bool = True
    """Whether there is one target a sample, none a pixel or a token."""

    @property
    def scale(self) -> float | None:
        """The loss over its mean: the batch size for a sum, 1/4 for a loss divided for accumulation."""
        ratio = self.loss / self.mean_loss if self.mean_loss else math.nan
        return ratio if math.isfinite(ratio) and ratio > 0 else None

    @property
    def same_label(self) -> float:
        """Probability that two samples of the batch, drawn without replacement, have the same label
        (Simpson's index, unbiased).
        """
        return _same_label(self.true) if self.true is not None else math.nan


@torch.no_grad()
def observe(chain: Sequence[str], loss: float, output: Tensor, gradient: Tensor) -> Observed | None:
    """What one batch tells; None where the loss is another, or something stands between the output and it.

    ``chain`` are autograd's operations from the loss down to the last layer, empty if not known; then the
    numbers alone decide.
    """
    if output.dim() < 1 or output.shape != gradient.shape or not math.isfinite(loss):
        return None
    output, gradient = output.detach().float().cpu(), gradient.detach().float().cpu()
    if output.dim() == 1:
        output, gradient = output.unsqueeze(1), gradient.unsqueeze(1)
    if not (torch.isfinite(output).all() and torch.isfinite(gradient).all() and gradient.any()):
        return None
    told = next((kind for name in chain for word, kind in _KINDS.items() if name.startswith(word)), None)
    if chain and told is None and not any(name.startswith("LogSoftmax") for name in chain):
        return None
    for kind, look in _LOOKS.items():
        if told in (None, kind) and (seen := look(loss, output, gradient, told is not None)) is not None:
            return seen
    return None


# ---------------------------------------------------------------- one class of many


def _class_dims(output: Tensor) -> Iterator[int]:
    """Dimensions that the classes may lie in: torch puts them second, a view may put them last."""
    yield from dict.fromkeys(d for d in (1, output.dim() - 1) if output.shape[d] > 1)


def _classes(loss: float, output: Tensor, gradient: Tensor, told: bool) -> Observed | None:
    for dim in _class_dims(output):
        o, g = (x.movedim(dim, -1).reshape(-1, x.shape[dim]) for x in (output, gradient))
        counted = g.abs().sum(1) > 0
        if not counted.any():
            continue
        flat = output.dim() == 2
        seen = _logits(loss, o, g, counted, told, flat) or _likelihoods(loss, o, g, counted, flat)
        if seen is not None:
            return seen
    return None


def _logits(loss: float, o: Tensor, g: Tensor, counted: Tensor, told: bool, flat: bool) -> Observed | None:
    """Cross-entropy of raw outputs: the gradient of a sample sums to zero over the classes."""
    size = g.abs().sum(1)
    if (g.sum(1).abs()[counted] > 0.02 * size[counted]).any():
        return None
    log_p = F.log_softmax(o, 1)
    p = log_p.exp()
    everything = torch.ones_like(counted)
    # A sample that is right beyond rounding leaves no gradient, like one that is not counted.
    sure = counted | (p.amax(1) >= 1 - EDGE * EDGE)
    for n, rows in (
        (len(o), everything),
        (int(counted.sum()), counted),
        (1, everything),
        (1, sure),
        (1, counted),
    ):
        target = p - g * n
        own = -(target * log_p).sum(1)
        mean = own[rows].mean().item()
        factor = mean if n > 1 else mean * int(rows.sum())
        if (
            target.min() > -EDGE
            and target.max() < 1 + EDGE
            and math.isclose(factor, loss, rel_tol=EXACT if told else EXACT_UNTOLD, abs_tol=1e-4)
        ):
            return _of_classes(loss, mean, True, o[rows], target[rows].clamp(0, 1), None, flat)
    y = g.argmin(1)
    if (not told and int((g < 0).sum()) != int(counted.sum())) or not counted.any():
        return None
    # The true class's gradient is -w (1 - p): read the weight, take a typical one where nearly nothing is
    # left of it.
    rest = 1 - p.gather(1, y.unsqueeze(1)).squeeze(1)
    clear = counted & (rest > SURE)
    if not clear.any():
        return None
    weight = torch.where(
        clear, -g.gather(1, y.unsqueeze(1)).squeeze(1) / rest.clamp(min=SURE), torch.zeros_like(rest)
    )
    weight = torch.where(counted & ~clear, weight[clear].median(), weight)[counted]
    own = -log_p.gather(1, y.unsqueeze(1)).squeeze(1)[counted]
    mean = ((weight * own).sum() / weight.sum()).item()
    exact = math.isclose((weight * own).sum().item(), loss, rel_tol=EXACT, abs_tol=1e-4)
    target = F.one_hot(y[counted], o.shape[1]).float()
    return _of_classes(loss, mean, exact, o[counted], target, weight, flat)


def _likelihoods(loss: float, o: Tensor, g: Tensor, counted: Tensor, flat: bool) -> Observed | None:
    """Negative log-likelihood of outputs that are log-probabilities or probabilities already: one negative
    gradient a sample.
    """
    if ((g != 0).sum(1)[counted] > 1).any() or (g > 0).any():
        return None
    y = g.argmin(1)
    mine = o.gather(1, y.unsqueeze(1)).squeeze(1)
    if (o <= 1e-6).all() and (o.exp().sum(1) - 1).abs().max() < 0.01:
        own, weight = -mine, -g.sum(1)
    elif (o >= 0).all() and (o.sum(1) - 1).abs().max() < 0.01:
        own, weight = -mine.clamp(min=1e-30).log(), -g.sum(1) * mine
    else:
        return None
    own, weight = own[counted], weight[counted]
    mean = ((weight * own).sum() / weight.sum()).item()
    exact = math.isclose((weight * own).sum().item(), loss, rel_tol=EXACT, abs_tol=1e-4)
    return _of_classes(loss, mean, exact, o[counted], F.one_hot(y[counted], o.shape[1]).float(), weight, flat)


def _of_classes(
    loss: float, mean: float, exact: bool, o: Tensor, target: Tensor, weight: Tensor | None, flat: bool
) -> Observed:
    classes, y, answer = o.shape[1], target.argmax(1), o.argmax(1)
    shares = target / target.sum(1, keepdim=True).clamp(min=1e-6)
    mass = shares.mean(0) if weight is None else (shares * weight.unsqueeze(1)).sum(0) / weight.sum()
    soft = -(shares * shares.clamp(min=1e-12).log()).sum(1).mean().item()
    floor = soft if soft > 0.01 else 0.0
    return Observed(
        "classes",
        loss,
        mean,
        exact,
        len(o),
        mass.double().unsqueeze(0),
        torch.bincount(y, minlength=classes),
        torch.bincount(answer, minlength=classes),
        torch.bincount(y[y == answer], minlength=classes),
        floor=floor,
        output_mean=o.mean().item(),
        output_std=o.std(correction=0).item(),
        flat=flat,
    )


# ---------------------------------------------------------------- yes or no


def _units(x: Tensor) -> Tensor:
    """(numbers, units): the second dimension is the units', pixels and tokens count as samples."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _binary(loss: float, output: Tensor, gradient: Tensor, told: bool) -> Observed | None:
    o, g = _units(output), _units(gradient)
    unit = bool((o >= 0).all() and (o <= 1).all())
    for probabilities in (False, True) if unit else (False,):
        p = o.clamp(1e-7, 1 - 1e-7) if probabilities else o.sigmoid()
        logits = torch.logit(p) if probabilities else o
        slope = g * p * (1 - p) if probabilities else g
        for n in (g.numel(), len(output), 1):
            target = p - slope * n
            own = F.softplus(logits) - logits * target
            inside = target.min() > -EDGE and target.max() < 1 + EDGE
            if (told or inside) and math.isclose(
                own.sum().item() / n, loss, rel_tol=EXACT if told else EXACT_UNTOLD, abs_tol=1e-4
            ):
                return _of_binary(loss, own.mean().item(), True, logits, target, None, output.dim() == 2)
        if not told:
            continue
        yes = slope < 0
        rest = torch.where(yes, 1 - p, p)
        weight = torch.where(rest > SURE, slope.abs() / rest.clamp(min=SURE), slope.abs().median())
        own = F.softplus(torch.where(yes, -logits, logits))
        exact = math.isclose((weight * own).sum().item(), loss, rel_tol=EXACT, abs_tol=1e-4)
        mean = ((weight * own).sum() / weight.sum()).item() if weight.sum() > 0 else math.nan
        if exact:
            return _of_binary(loss, mean, True, logits, yes.float(), weight, output.dim() == 2)
    return None


def _of_binary(
    loss: float, mean: float, exact: bool, o: Tensor, target: Tensor, weight: Tensor | None, flat: bool
) -> Observed:
    low, high = target.min().item(), target.max().item()
    within = low > -EDGE and high < 1 + EDGE
    share = target.clamp(0, 1)
    w = torch.ones_like(share) if weight is None else weight
    yes = (share * w).sum(0) / w.sum(0).clamp(min=1e-30)
    y, answer = share > 0.5, o > 0
    pairs = [torch.tensor([(~x).sum(), x.sum()]) for x in (y, answer)]
    right = torch.tensor([(~y & ~answer).sum(), (y & answer).sum()])
    entropy = (
        -(share.clamp(1e-12, 1).log() * share + (1 - share).clamp(1e-12, 1).log() * (1 - share)).mean().item()
    )
    return Observed(
        "binary",
        loss,
        mean,
        exact,
        len(o),
        torch.stack([1 - yes, yes], 1).double() if within else None,
        *pairs,
        right,
        low=low,
        high=high,
        floor=entropy if entropy > 0.01 else 0.0,
        output_mean=o.mean().item(),
        output_std=o.std(correction=0).item(),
        flat=flat and o.shape[1] == 1,
    )


# ---------------------------------------------------------------- numbers


def _numbers(loss: float, output: Tensor, gradient: Tensor, told: bool) -> Observed | None:
    o, g = _units(output).double(), _units(gradient).double()
    for n in (g.numel(), len(output), 1):
        difference = g * (n / 2)
        if math.isclose(difference.square().sum().item() / n, loss, rel_tol=EXACT if told else EXACT_UNTOLD):
            target = o - difference
            sums = torch.stack(
                [torch.full_like(target[0], len(target)), target.sum(0), target.square().sum(0)]
            )
            moved = o - o.mean(0)
            moments = torch.stack([(moved * (target - target.mean(0))).mean(0), moved.square().mean(0)])
            mean = difference.square().mean().item()
            return Observed(
                "numbers",
                loss,
                mean,
                True,
                len(o),
                sums=sums,
                low=target.min().item(),
                high=target.max().item(),
                output_mean=o.mean().item(),
                output_std=o.std(correction=0).item(),
                moments=moments,
                flat=output.dim() == 2,
            )
    return None


def _absolute(loss: float, output: Tensor, gradient: Tensor, told: bool) -> Observed | None:
    size = gradient.abs()
    if not told or size.max() > 1.01 * size[size > 0].min():
        return None
    side = abs(gradient.sign().mean().item())
    return Observed(
        "absolute",
        loss,
        loss,
        False,
        len(output),
        output_mean=output.mean().item(),
        output_std=output.std(correction=0).item(),
        one_sided=side,
        flat=output.dim() == 2,
    )


_LOOKS = {"classes": _classes, "binary": _binary, "numbers": _numbers, "absolute": _absolute}


@torch.no_grad()
def is_discriminator(loss: float, passes: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the loss is the sum (or mean) of two passes' binary cross-entropies, one of them all yes and
    the other all no: real and fake.
    """
    if any(o.shape != g.shape or o.dim() < 1 for o, g in passes):
        return False
    targets, means = [], []
    for output, gradient in passes:
        o, g = output.detach().float().cpu(), gradient.detach().float().cpu()
        for half in (1, 2):  # a mean of the two halves each gradient
            target = o.sigmoid() - g * g.numel() * half
            if (
                target.std(correction=0) < EDGE
                and min(abs(target.mean().item()), abs(target.mean().item() - 1)) < 0.25
            ):
                targets.append(target.mean().item())
                means.append((F.softplus(o) - o * target).mean().item())
                break
    if len(targets) < 2 or abs(targets[0] - targets[1]) < 0.5:
        return False
    return any(math.isclose(sum(means) / n, loss, rel_tol=EXACT) for n in (1, len(means)))


# ---------------------------------------------------------------- over the run


class TargetLog:
    """Collects ``Observed`` batches over a run and sums them up as facts."""

    def __init__(self) -> None:
        self._kind: str | None = None
        self._first: list[Observed] = []
        self._late: deque[Observed] = deque(maxlen=LATE)
        self._each: list[tuple[float, Tensor]] = []
        self._pooled: Tensor | None = None
        self._true: Tensor | None = None
        self._count = self._samples = 0
        self._same: list[float] = []
        self._scales: list[float] = []
        self._range = [math.inf, -math.inf]

    def add(self, seen: Observed) -> None:
        """Take one batch in. A batch of another kind or shape than the first is left out: several losses
        cannot be pooled.
        """
        sums = seen.mass if seen.mass is not None else seen.sums
        if self._kind not in (None, seen.kind) or (
            sums is not None and self._pooled is not None and sums.shape != self._pooled.shape
        ):
            return
        self._kind = seen.kind
        self._count, self._samples = self._count + 1, self._samples + seen.samples
        if len(self._first) < FIRST:
            self._first.append(seen)
        self._late.append(seen)
        self._scales = [*self._scales, scale][-KEPT:] if (scale := seen.scale) is not None else self._scales
        self._range = [_least(self._range[0], seen.low), -_least(-self._range[1], -seen.high)]
        if seen.true is not None:
            self._true = seen.true.clone() if self._true is None else self._true + seen.true
            if seen.flat and seen.samples >= 4 and len(self._same) < KEPT:
                self._same.append(seen.same_label)
        if sums is None:
            return
        weight = float(seen.samples) if seen.mass is not None else 1.0
        self._pooled = weight * sums if self._pooled is None else self._pooled + weight * sums
        if len(self._each) < KEPT and sums.numel() <= LARGEST_KEPT:
            self._each.append((weight, sums))

    def facts(self) -> dict[str, Any]:
        """Plain numbers for ``status.json``; empty if nothing was observed.

        ``price``: loss of the best answer that does not look at the input, pooled over all observed batches,
        with its standard error; ``floor``: the loss that perfect outputs would leave; ``coverage``: estimated
        share of the classes' weight that has been seen (Good and Turing); ``scale``: the loss over its mean,
        None where it changes; ``same_label`` within batches and over all; ``drift``: whether the batches'
        mean target goes one way, -1 to 1; ``first`` and ``late``: how outputs compare with targets.
        """
        if self._kind is None:
            return {}
        seen = (*self._first, *self._late)
        facts: dict[str, Any] = {
            "kind": self._kind,
            "batches": self._count,
            "samples": self._samples,
            "exact": all(s.exact for s in seen),
            "scale": agreed(self._scales) if self._scales else None,
            "floor": statistics.fmean(s.floor for s in seen),
            "first": _summary(self._first),
            "late": _summary(list(self._late)),
        }
        price = self._price()
        if price is not None:
            facts |= dict(zip(("price", "price_error"), price, strict=True))
        if math.isfinite(self._range[0]):
            facts |= {"low": self._range[0], "high": self._range[1]}
        if self._true is not None:
            facts |= {
                "classes": len(self._true),
                "true_classes": int((self._true > 0).sum()),
                "coverage": 1 - float((self._true == 1).sum()) / max(1.0, float(self._true.sum())),
                "largest": _share(self._true),
                "largest_class": int(self._true.argmax()),
                "entropy": float(_entropy(self._true.double() / float(self._true.sum()))),
            }
            if len(self._same) > 1:
                facts |= {
                    "same_label": statistics.fmean(self._same),
                    "same_label_overall": _same_label(self._true),
                }
        if self._kind == "numbers" and self._pooled is not None:
            count, total, squares = self._pooled
            mean = total / count
            facts |= {"mean": float(mean.mean()), "rms": float((squares / count).mean().sqrt())}
            within = [_variance(sums) for _, sums in self._each]
            if len(within) > 1:
                facts["variance_within"] = statistics.fmean(within)
                facts["drift"] = _order([float((s[1] / s[0]).mean()) for _, s in self._each])
        return facts

    def _price(self) -> tuple[float, float] | None:
        """(loss of the best constant answer, its standard error) from all batches."""
        if self._pooled is None or not self._samples:
            return None
        if self._kind == "numbers":
            count, total, squares = self._pooled
            mean = total / count
            price = float(
                ((squares / count - mean**2).clamp(min=0) * (count / (count - 1).clamp(min=1))).mean()
            )
            each = [float((s[2] / s[0] - 2 * mean * s[1] / s[0] + mean**2).mean()) for _, s in self._each]
        else:
            shares = self._pooled / self._pooled.sum(1, keepdim=True)
            seen = (shares > 1e-9).sum(1).double()
            # Miller and Madow's correction: an entropy of few samples is too small.
            price = float((_entropy(shares) + (seen - 1) / (2 * self._samples)).mean())
            logs = -shares.clamp(min=1e-12).log()
            each = [float((mass * logs).sum(1).mean()) for _, mass in self._each]
            if len(each) < 2:
                spread = ((shares * logs**2).sum(1) - _entropy(shares) ** 2).clamp(min=0).mean()
                return price, math.sqrt(float(spread) / self._samples)
        if len(each) < 2:
            return price, price
        return price, statistics.stdev(each) / math.sqrt(len(each))


def _summary(batches: Sequence[Observed]) -> dict[str, float]:
    """Predictions against targets of some batches, as plain numbers."""
    facts = {
        "output_mean": statistics.fmean(s.output_mean for s in batches),
        "output_std": statistics.fmean(s.output_std for s in batches),
    }
    facts["mean_loss"] = statistics.fmean(s.mean_loss for s in batches)
    facts["penalty"] = statistics.fmean(s.loss - s.mean_loss for s in batches)
    if batches[0].true is not None:
        true, predicted, right = (
            sum(getattr(s, name) for s in batches) for name in ("true", "predicted", "right")
        )
        total = float(true.sum())
        there = true > 0
        recall = right[there].double() / true[there].double()
        others = torch.arange(len(true)) != int(true.argmax())
        facts |= {
            "accuracy": float(right.sum()) / total,
            "balanced_accuracy": float(recall.mean()),
            "true_largest": _share(true),
            "predicted_largest": _share(predicted),
            "predicted_class": int(predicted.argmax()),
            "never_predicted": float(true[predicted == 0].sum()) / total,
            "minority_recall": float(right[others].sum()) / max(1.0, float(true[others].sum())),
            "minority": float(true[others].sum()),
            "agreement_by_chance": float(
                (true.double() / total * predicted.double() / float(predicted.sum())).sum()
            ),
            "judged": total,
        }
    if batches[0].moments is not None:
        covariance, variance = sum(s.moments for s in batches) / len(batches)
        spread = torch.stack([_variances(s.sums) for s in batches]).mean(0)
        r = covariance / (variance * spread).clamp(min=1e-300).sqrt()
        facts |= {
            "correlation": float(r.nan_to_num().mean()),
            "judged": float(sum(s.samples for s in batches)),
        }
        facts |= {"target_mean": statistics.fmean(float((s.sums[1] / s.sums[0]).mean()) for s in batches)}
    if math.isfinite(batches[0].one_sided):
        facts["one_sided"] = statistics.fmean(s.one_sided for s in batches)
    return facts


def _variances(sums: Tensor) -> Tensor:
    count, total, squares = sums
    return (squares / count - (total / count) ** 2).clamp(min=0) * (count / (count - 1).clamp(min=1))


def _variance(sums: Tensor) -> float:
    return float(_variances(sums).mean())


def _order(values: Sequence[float]) -> float:
    """Spearman's rank correlation of ``values`` with their places, -1 to 1: 1 if each is above the one
    before.
    """
    ranks = torch.tensor(values, dtype=torch.float64).argsort().argsort().double()
    places = torch.arange(len(ranks), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, places]))[0, 1])


def _entropy(shares: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -(shares * shares.clamp(min=1e-300).log()).sum(-1)


def _share(counts: Tensor) -> float:
    return float(counts.max()) / max(1.0, float(counts.sum()))


def _same_label(counts: Tensor) -> float:
    n = float(counts.sum())
    return float((counts.double() * (counts.double() - 1)).sum()) / (n * (n - 1)) if n > 1 else math.nan


def _least(a: float, b: float) -> float:
    return a if math.isnan(b) else min(a, b)


def agreed(scales: Sequence[float]) -> float | None:
    """The median of ``scales``; None where they differ by more than ``AGREED``: a loss with a penalty or with
    smoothed labels has no one scale.
    """
    middle = statistics.median(scales)
    return middle if max(scales) - min(scales) <= AGREED * middle else None
