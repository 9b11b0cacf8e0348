"""Any ``nn.Module`` with one recorded call of it: facts, axes, masks, edits."""
