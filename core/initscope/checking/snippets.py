"""Plain PyTorch to copy, one piece for each finding of a check."""

from __future__ import annotations

_INIT_RELU = """for module in model.modules():
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)"""
_INIT_TANH = """for module in model.modules():
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)"""
_RAW_OUTPUTS = """outputs = model(inputs)                      # no softmax, no sigmoid, no ReLU after the last layer
loss = F.cross_entropy(outputs, targets)     # targets: class numbers; two classes, one output: F.binary_cross_entropy_with_logits"""  # noqa: E501
_OVERFIT = """inputs, targets = next(iter(loader))
for step in range(200):                      # the loss must come close to zero
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    optimizer.step()
    print(step, loss.item())"""
_FINITE = """torch.autograd.set_detect_anomaly(True)     # names the operation whose gradient is not finite
assert torch.isfinite(inputs).all() and torch.isfinite(model(inputs)).all()
x = torch.sqrt(x + 1e-8)                     # the same for log; clamp what is divided by"""
_REACHED = """for name, parameter in model.named_parameters():
    if parameter.requires_grad and parameter.grad is None:
        print("no gradient reaches", name)   # look for detach(), no_grad(), .item(), .numpy() and argmax on its way"""  # noqa: E501
_HOLD = """self.blocks = nn.ModuleList(blocks)          # not a plain list or dict; single tensors: nn.Parameter
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)   # after every layer has been made"""  # noqa: E501

SNIPPETS: dict[str, str] = {
    "layers_unregistered": _HOLD,
    "layers_not_optimized": _HOLD,
    "weights_frozen": "for parameter in model.parameters():\n    parameter.requires_grad_(True)\noptimizer = "
    "torch.optim.Adam(model.parameters(), lr=1e-3)",
    "samples_mixed": """lstm = nn.LSTM(features, hidden, batch_first=True)   # inputs (batch, time, features); the same for nn.MultiheadAttention
x = x.transpose(0, 1)                                # to change the order of dimensions; view and reshape do not
x = x.flatten(1)                                     # to flatten samples one by one""",  # noqa: E501
    "identical_units": _INIT_RELU,
    "signal_collapse": _INIT_RELU,
    "signal_explosion": _INIT_RELU,
    "vanishing_gradient": _INIT_RELU,
    "dead_units": _INIT_RELU,
    "saturated_units": _INIT_TANH,
    "initial_loss_off": "nn.init.normal_(model.head.weight, std=0.01)   # a small last layer guesses at "
    "first\nnn.init.zeros_(model.head.bias)",
    "input_out_of_range": (
        "mean, std = train_inputs.mean(0), train_inputs.std(0)\ninputs = (inputs - mean) / (std + 1e-6)"
    ),
    "modes_disagree": """for module in model.modules():               # gather the averages anew, from training batches
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.reset_running_stats()
        module.momentum = 0.1
model.train()
with torch.no_grad():
    for inputs, _ in loader:
        model(inputs)
model.eval()""",  # noqa: E501
    "dropout_high": "nn.Dropout(0.2)                              # p is the share that is set to zero",
    "first_nonfinite": _FINITE,
    "loss_nonfinite": _FINITE,
    "batch_not_learned": _OVERFIT,
    "rate_out_of_range": "optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)",
    "layers_unreached": _REACHED,
    "loss_negated": "loss = F.cross_entropy(outputs, targets)     # without the minus sign",
    "targets_broadcast": (
        "loss = F.mse_loss(outputs.squeeze(1), targets)   # outputs and targets of one shape"
    ),
    "softmax_across_batch": (
        "probabilities = outputs.softmax(dim=1)       # over classes; dimension 0 is the batch"
    ),
}
"""By the id of a finding; findings of the loss that have none of their own get ``RAW_OUTPUTS``."""
RAW_OUTPUTS = _RAW_OUTPUTS
