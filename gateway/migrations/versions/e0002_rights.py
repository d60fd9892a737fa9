"""Rights that begin or end by hand: cameras granted for a time, and accounts whose tokens were revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "e0002"
down_revision = "e0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "camera_grants",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("camera_id", sa.Text, nullable=False),
        sa.Column("sub", sa.Text, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False, index=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("granted_by", sa.Text, nullable=False),
        sa.Column("granted_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "revoked_accounts",
        sa.Column("sub", sa.Text, primary_key=True),
        sa.Column("not_before", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("revoked_accounts")
    op.drop_table("camera_grants")
