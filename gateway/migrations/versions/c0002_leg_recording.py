"""Whether a leg is being recorded, how a ring reached its phone, and whether a gridworker calls for help."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0002"
down_revision = "c0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("call_legs", sa.Column("recording", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("calls", sa.Column("sos", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("call_rings", sa.Column("deliveries", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("calls", "sos")
    op.drop_column("call_rings", "deliveries")
    op.drop_column("call_legs", "recording")
