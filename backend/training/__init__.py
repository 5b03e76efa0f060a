# SPDX-License-Identifier: GPL-2.0-or-later
"""Training of the learned methods: pairs by Wald's protocol, losses, and a trainer that can be resumed."""
