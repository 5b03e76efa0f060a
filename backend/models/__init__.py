# SPDX-License-Identifier: GPL-2.0-or-later
"""Network architectures, one a file, with weights as `config.json` + `model.safetensors` (`pretrained`)."""
