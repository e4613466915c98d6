"""Campaigns: thousands of damaged inputs with an oracle (`python -m campaign`), and runs that are killed and go on
(`python -m campaign.kills`). `docs/reliability.md` has their figures; pytest runs a small part of the first."""
