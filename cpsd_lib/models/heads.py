"""What a backbone computes -> logits, and one embedding a class where the head has tokens."""

import math

import torch
from torch import nn
from torch.nn import functional


def _start_small(weight, bias, prior):
    # timm's own init gives logits of std 7 on MobileNet and the first epochs only unlearn them: mAP 26 after two
    # epochs on 18 classes of COCO at 96 px, against 42 with small weights and a low prior.
    nn.init.normal_(weight, std=0.01)
    nn.init.constant_(bias, math.log(prior / (1 - prior)))


class LinearHead(nn.Module):
    """One linear layer behind what timm has between a model's last features and its classifier (CPSD's tables: R101)."""

    def __init__(self, features, num_classes, prior=0.12):
        super().__init__()
        self.linear = nn.Linear(features, num_classes)
        _start_small(self.linear.weight, self.linear.bias, prior)

    def forward(self, features):
        """Return (logits [B, C], None) for pooled features [B, F]."""
        return self.linear(features), None


class ClassLinear(nn.Module):
    """One linear layer to a single logit for each class: weight [C, D], bias [C]."""

    def __init__(self, num_classes, dim, prior):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(num_classes, dim)), nn.Parameter(torch.empty(num_classes))
        _start_small(self.weight, self.bias, prior)

    def forward(self, embeddings):
        """Return logits [B, C] for embeddings [B, C, D]."""
        return (embeddings * self.weight).sum(-1) + self.bias


class LabelTransformer(nn.Module):
    """Image tokens and one token a class through a pre-norm transformer (CPSD's tables: R101+TF).

    label_vectors: [C, V], a fixed vector of each class (GloVe), or "learned": 300 numbers a class, trained with the rest.
    """

    def __init__(self, features, num_classes, prior=0.12, dim=1024, label_vectors="learned", depth=3):
        super().__init__()
        if isinstance(label_vectors, str):
            # About the spread of GloVe's numbers, so that both kinds start alike.
            self.label_vectors = nn.Parameter(torch.randn(num_classes, 300) * 0.4)
        else:
            self.register_buffer("label_vectors", label_vectors)
        self.image_tokens = nn.Linear(features, dim)
        self.label_tokens = nn.Linear(self.label_vectors.shape[1], dim)
        self.layers = nn.ModuleList(_PreNormLayer(dim, heads=4) for _ in range(depth))
        self.linear = nn.Linear(dim, 1)
        _start_small(self.linear.weight, self.linear.bias, prior)

    def forward(self, features):
        """Return (logits [B, C], label embeddings [B, C, dim]) for features [B, F, h, w]."""
        image = self.image_tokens(features.flatten(2).transpose(1, 2))
        labels = self.label_tokens(self.label_vectors).relu()
        tokens = torch.cat([image, labels.expand(image.shape[0], -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        embeddings = tokens[:, image.shape[1] :]
        return self.linear(embeddings).squeeze(-1), embeddings


class _PreNormLayer(nn.Module):
    """Self-attention with heads as wide as the tokens, then an MLP as wide as the tokens."""

    def __init__(self, dim, heads, dropout=0.1):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * dim, bias=False)
        self.out = nn.Linear(heads * dim, dim)
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens):
        # q, k and v one after the other, the heads inside each: [3, B, heads, T, dim].
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.dropout(self.out(attended))
        hidden = self.dropout(functional.gelu(self.linear1(self.norm2(tokens))))
        return tokens + self.dropout(self.linear2(hidden))


class Query2Label(nn.Module):
    """One learned query a class looks at the encoded image (CPSD's tables: Q2L-R101; Liu et al. 2021, as in DETR)."""

    def __init__(self, features, num_classes, prior=0.12, dim=2048):
        super().__init__()
        self.project = nn.Conv2d(features, dim, 1)
        self.encoder = _AttentionLayer(dim, heads=4, hidden=4 * dim)
        self.decoder = nn.ModuleList(_AttentionLayer(dim, heads=4, hidden=4 * dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(num_classes, dim))
        self.linear = ClassLinear(num_classes, dim, prior)
        # Only a checkpoint that was trained with another code than ours brings its own, [1, dim, h, w].
        self.register_buffer("position", None)

    def forward(self, features):
        """Return (logits [B, C], label embeddings [B, C, dim]) for features [B, F, h, w]."""
        image = self.project(features).flatten(2).transpose(1, 2)
        position = self._position(*features.shape[2:], features.device).flatten(2).transpose(1, 2)
        memory = self.encoder(image, position, image + position, image)
        labels = torch.zeros_like(self.queries).expand(memory.shape[0], -1, -1)
        for layer in self.decoder:
            labels = layer(labels, self.queries, memory + position, memory)
        embeddings = self.norm(labels)
        return self.linear(embeddings), embeddings

    def _position(self, rows, columns, device):
        if self.position is None:
            return sine_position(self.queries.shape[1], rows, columns, device).to(self.queries.dtype)
        if self.position.shape[2:] != (rows, columns):
            found = "x".join(map(str, self.position.shape[2:]))
            raise ValueError(f"the weights have a position code of their own for {found} places, not {rows}x{columns}")
        return self.position


def sine_position(dim, rows, columns, device=None):
    """Return DETR's fixed position code [1, dim, rows, columns]: first half the row, second half the column.

    Places count from 1 and end at 2 pi; channel 2i is a sine and 2i + 1 a cosine of place / 10000^(2i / (dim / 2)).
    """
    channel = torch.arange(dim // 2, device=device)
    wavelength = 10_000 ** (2 * (channel // 2) / (dim // 2))

    def code(places):
        place = torch.arange(1, places + 1, device=device) / (places + 1e-6) * 2 * math.pi
        angle = place / wavelength[:, None]  # [dim / 2, places]
        return torch.where(channel[:, None] % 2 == 0, angle.sin(), angle.cos())

    by_row = code(rows)[:, :, None].expand(-1, -1, columns)
    by_column = code(columns)[:, None, :].expand(-1, rows, -1)
    return torch.cat([by_row, by_column])[None]


class _FeedForward(nn.Module):
    """Two linear layers with ReLU around a residual, then a norm."""

    def __init__(self, dim, hidden, dropout):
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens):
        hidden = self.dropout(self.linear1(tokens).relu())
        return self.norm(tokens + self.dropout(self.linear2(hidden)))


class _AttentionLayer(nn.Module):
    """Post-norm attention of some tokens to others: of the image to itself, or of the labels to the image.

    Places and queries are added to what is compared, never to what is summed.
    """

    def __init__(self, dim, heads, hidden, dropout=0.1):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)  # as its other weights, and as DETR does
        self.norm, self.feed_forward = nn.LayerNorm(dim), _FeedForward(dim, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens, queries, keys, values):
        attended = self.attention(tokens + queries, keys, values, need_weights=False)[0]
        return self.feed_forward(self.norm(tokens + self.dropout(attended)))


class MLDecoder(nn.Module):
    """Fixed random queries, one a class, look at the image in one decoder layer (ML-Decoder; Ridnik et al. 2021)."""

    def __init__(self, features, num_classes, prior=0.12, dim=768):
        super().__init__()
        self.project = nn.Linear(features, dim)
        # Never trained, yet part of the weights: another draw would be another head.
        self.register_buffer("queries", torch.randn(num_classes, dim))
        self.norm = nn.LayerNorm(dim)  # the layer keeps the norm whose self-attention was taken out
        self.decoder = _AttentionLayer(dim, heads=8, hidden=8 * dim // 3)  # 2048 for 768
        self.linear = ClassLinear(num_classes, dim, prior)

    def forward(self, features):
        """Return (logits [B, C], label embeddings [B, C, dim]) for features [B, F, h, w]."""
        image = self.project(features.flatten(2).transpose(1, 2)).relu()
        labels = self.norm(self.queries).expand(image.shape[0], -1, -1)
        embeddings = self.decoder(labels, torch.zeros_like(labels), image, image)
        return self.linear(embeddings), embeddings
