"""Ticks and task norms on a transformer of somebody else's, in a project that knows nothing of this one.

Needs transformers and safetensors: pip install -e ".[tuning]". Run it: python docs/examples/ticks_on_bert.py
"""

import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, BertConfig, BertModel

from ticks.models.changes import attach_ticks, load_adapter, merge, save_adapter, set_task, task_norms, train_only

transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
small = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
BertModel(small).save_pretrained(folder / "base")  # or any name: AutoModel.from_pretrained("bert-base-uncased")

# 1. beside every FFN, and at every norm: nothing changes yet
model = AutoModel.from_pretrained(folder / "base").eval()
tokens = torch.arange(24).reshape(2, 12)
before = model(tokens).last_hidden_state
attach_ticks(model, width=8, scale=4.0, task="sentiment")
task_norms(model, task="sentiment")
print("unchanged:", torch.equal(model(tokens).last_hidden_state, before))

# 2. train them, the rest stays as it is
names = train_only(model, [r"\.tasks\.sentiment\."])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(20):
    loss = (model(tokens).last_hidden_state[:, 0].mean() - 1).square()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters, loss {loss.item():.4f}")

# 3. keep them in a file of their own, and put them beside the same base elsewhere
save_adapter(model, folder / "sentiment.safetensors")
other = load_adapter(AutoModel.from_pretrained(folder / "base").eval(), folder / "sentiment.safetensors")
print("read back:", torch.equal(other(tokens).last_hidden_state, model(tokens).last_hidden_state))

# 4. another task on the same base, and a batch of both
task_norms(attach_ticks(other, width=4, task="topic"), task="topic")
set_task(other, ["sentiment", "topic"])
mixed = other(tokens).last_hidden_state
set_task(other, "sentiment")
print("mixed is each by itself:", torch.allclose(mixed[0], other(tokens).last_hidden_state[0], atol=1e-5))

# 5. into the base, in its own format
merge(model).save_pretrained(folder / "merged")
again = AutoModel.from_pretrained(folder / "merged").eval()
difference = (again(tokens).last_hidden_state - other(tokens).last_hidden_state).abs().max().item()
print(f"merged: {again.config.intermediate_size} hidden units, difference {difference:.1e}")
