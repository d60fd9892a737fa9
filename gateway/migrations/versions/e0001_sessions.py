"""Tokens that are spent before they expire: used one-time codes and revoked sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "e0001"
down_revision = None
branch_labels = ("http",)
depends_on = "s0001"


def upgrade() -> None:
    op.create_table(
        "spent_tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("until", sa.BigInteger, nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("spent_tokens")
