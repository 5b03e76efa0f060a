# SPDX-License-Identifier: GPL-2.0-or-later
"""The prior: what the fine image looks like, drawn from a diffusion model under the guidance of the pair."""
