"""The outbox holds what is not delivered and nothing else: no states, no indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "s0002"
down_revision = "s0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.text("DELETE FROM outbox WHERE delivered_at IS NOT NULL"))
    op.drop_index("ix_outbox_pending", "outbox")
    op.drop_index("ix_outbox_pending_key", "outbox")
    for column in ("not_before", "attempts", "delivered_at", "error"):
        op.drop_column("outbox", column)


def downgrade() -> None:
    raise NotImplementedError("what was delivered is not known any more")
