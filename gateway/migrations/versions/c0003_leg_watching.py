"""Whether a leg watches, and since when it does no more: who only listens keeps its place."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0003"
down_revision = "c0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("call_legs", sa.Column("watching", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("call_legs", sa.Column("unwatched_at", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("call_legs", "unwatched_at")
    op.drop_column("call_legs", "watching")
