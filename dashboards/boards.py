"""All boards."""

from __future__ import annotations

from dashboards import gateway, pools, sql, workflows

BOARDS = (workflows.BOARD, pools.BOARD, sql.BOARD, gateway.BOARD)
