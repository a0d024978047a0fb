"""Deltas on the Hugging Face Hub: pushed as one commit, pulled with every digest checked; bases tied by file hashes."""

from __future__ import annotations

from .card import CardFacts, card_facts, official_bases, render_card
from .card_check import check_card
from .card_scores import Recorded, Score, recorded_for_card
from .presence import ask_hub
from .pull import Pulled, pull
from .push import Pushed, PushedFile, push
from .revision import HubRevision, tie_base

__all__ = [
    "CardFacts",
    "HubRevision",
    "Pulled",
    "Pushed",
    "PushedFile",
    "Recorded",
    "Score",
    "ask_hub",
    "card_facts",
    "check_card",
    "official_bases",
    "pull",
    "push",
    "recorded_for_card",
    "render_card",
    "tie_base",
]
