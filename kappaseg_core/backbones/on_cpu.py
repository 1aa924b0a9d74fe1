"""What plain transformers of timm compute on the CPU faster, and with less kept, than timm's own modules.

The modules stay where they are, with their names and parameters; only their class changes to one below.
"""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from kappaseg_core.attention import attention, packed_attention, unpacked
from kappaseg_core.products import Linear, gelu_linear


def use_faster_modules(network: nn.Module) -> None:
    """Give attention, feed-forward and linear layers of a network, in place, the classes below."""
    for module in network.modules():
        for kind, ours in FASTER.items():
            if type(module) is kind:
                module.__class__ = ours


class BlockedAttention(Attention):
    """timm's, in blocks where these are faster."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if is_causal or self.gate is not None or not self.fused_attn:
            other: Tensor = super().forward(x, attn_mask, is_causal)
            return other
        packed: Tensor = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        dropout = self.attn_drop.p if self.training else 0.0
        if isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            found = packed_attention(packed, attn_mask, dropout=dropout)
        else:
            queries, keys, values = unpacked(packed)
            found = attention(self.q_norm(queries), self.k_norm(keys), values, attn_mask, dropout=dropout)
        out: Tensor = self.proj_drop(self.proj(self.norm(found.transpose(1, 2).flatten(2))))
        return out


class LeanMlp(Mlp):
    """timm's, which keeps the numbers before the activation and not those behind it as well."""

    def forward(self, x: Tensor) -> Tensor:
        is_plain = isinstance(self.act, nn.GELU) and self.act.approximate == "none" and type(self.fc2) is Linear
        if not is_plain or not isinstance(self.norm, nn.Identity) or (self.training and self.drop1.p):
            other: Tensor = super().forward(x)
            return other
        out: Tensor = self.drop2(gelu_linear(self.fc1(x), self.fc2.weight, self.fc2.bias))
        return out


FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, Attention: BlockedAttention, Mlp: LeanMlp}
