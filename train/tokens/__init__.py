"""Conversations and a chat template → token ids, loss mask and ledger."""
