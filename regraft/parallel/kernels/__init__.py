"""Attention kernels with their log-sum-exp, and the choice of one for a device."""
