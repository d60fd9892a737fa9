"""Reports by the name that their phone gave them, and the call-back that a cancelled alarm owes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a0003"
down_revision = "a0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "incident_report",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("report_id", sa.Text, primary_key=True),
        sa.Column("incident_id", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_incident_alarm_id", "incident", ["alarm_id"])
    op.add_column("alarm", sa.Column("call_back", sa.Text))


def downgrade() -> None:
    raise NotImplementedError("who was called back is not forgotten")
