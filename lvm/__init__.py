"""LVM: train, evaluate and prompt autoregressive large vision models (arXiv 2312.00785)."""
