"""What the tests of metrics share: a scrape, and where the dashboard is."""

from pathlib import Path

from tests.support.world import Running

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "helm/trace-sidecar/dashboards/trace-sidecar.json"
# The default of the chart's value prometheusRule.runbookUrl.
RUNBOOKS = "https://github.com/scaleapi/trace-sidecar/blob/main/docs/runbooks.md"
# Both upstreams enabled; neither is there.
BOTH = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}


async def scrape(app: Running) -> str:
    """Return the text of one scrape."""
    async with app.client.get(f"{app.admin_url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        return await response.text()
