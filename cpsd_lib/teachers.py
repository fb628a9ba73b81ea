"""Frozen experts that act as one C-way teacher."""

from torch import nn


class Teachers(nn.Module):
    """The experts of one partition, merged into one teacher over all classes (METHOD 1.4); it cannot leave eval mode."""

    def __init__(self, models, partition):
        super().__init__()
        if len(models) != len(partition.parts):
            raise ValueError(
                f"{len(models)} teachers for {len(partition.parts)} parts; give one model a part, in order"
            )
        self.experts, self.partition = nn.ModuleList(models), partition
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in eval mode: the release's teachers changed their batch-norm statistics while they were distilled."""
        return super().train(False)

    def label_embeddings(self, images):
        """Return merged label-wise embeddings [B, C, D] for images [B, 3, S, S]; ValueError for experts without."""
        self.eval()
        found = [expert(images).label_embeddings for expert in self.experts]
        if any(one is None for one in found):
            raise ValueError("these teachers have no label embeddings; give them a head that has, such as ml_decoder")
        return self.partition.merge(found)

    def forward(self, images):
        """Return merged logits [B, C] for images [B, 3, S, S]."""
        self.eval()  # one expert may have been told train() by name
        return self.partition.merge([expert(images).logits.float() for expert in self.experts])


class TrainModeTeachers(Teachers):
    """The same experts in train mode, as the release distilled them: for the ablation that shows what this fault costs."""

    def train(self, mode=True):
        """Stay in train mode: dropout drops, batch norm uses and moves its statistics."""
        return nn.Module.train(self, True)

    def eval(self):
        """Stay in train mode."""
        return self.train()
