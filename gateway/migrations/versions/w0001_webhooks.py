"""Messages to other platforms, until they have arrived or are dead."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "w0001"
down_revision = None
branch_labels = ("webhooks",)
depends_on = "s0001"


def upgrade() -> None:
    op.create_table(
        "webhook_message",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hook", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("ix_webhook_message_due", "webhook_message", ["hook", "next_at"])
    op.create_index("ix_webhook_message_subject", "webhook_message", ["hook", "subject", "number"])


def downgrade() -> None:
    op.drop_table("webhook_message")
