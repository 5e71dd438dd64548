"""Linear layers that may stand once for each part of an image, and the classifier, which is one."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PartedLinear(nn.Module):
    """A linear layer, or one for each part: (N, inputs) to (N, outputs), (N, parts, inputs) to (N, parts, outputs).

    Its weights begin as those of torch's own. With parts the weight is (parts, outputs, inputs).
    """

    def __init__(self, inputs: int, outputs: int, *, parts: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.parts = parts
        each = (parts,) if parts else ()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(*each, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(*each, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Each vector, or each part's, to its outputs."""
        return self._outputs(x, self.weight)

    def _outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.parts:
            return functional.linear(x, weight, self.bias)
        # One product of all parts would round an image that is alone in its batch otherwise than among others.
        outputs = torch.stack([functional.linear(x[:, part], weight[part]) for part in range(self.parts)], dim=1)
        return outputs if self.bias is None else outputs + self.bias


class Classifier(PartedLinear):
    """Features to scores: (N, dim) to (N, classes), (N, parts, dim) to (N, parts, classes).

    Attributes:
        unit_features: whether features are brought to unit length first.
        unit_rows: whether the rows of the weight are; in training they are overwritten, before each forward pass.
        temperature: what the scores are divided by.
    """

    def __init__(self, dim: int, classes: int, *, parts: int = 0, bias: bool = True) -> None:
        super().__init__(dim, classes, parts=parts, bias=bias)
        self.unit_features = False
        self.unit_rows = False
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        weight: Tensor = self.weight
        if self.unit_rows:
            rows = functional.normalize(weight.detach(), dim=-1)
            if self.training:
                self.weight.data.copy_(rows)
            else:
                weight = rows
        if self.unit_features:
            x = functional.normalize(x, dim=-1)
        return self._outputs(x, weight) / self.temperature
