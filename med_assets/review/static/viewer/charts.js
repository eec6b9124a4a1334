// Lines over one axis, by uPlot.

const DASH = [6, 4];

export function plot(holder, chart) {
  // Lines of one x share their points; uPlot wants one x for all.
  const xs = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const data = [xs, ...chart.lines.map((line) => {
    const values = new Map(line.x.map((x, number) => [x, line.y[number]]));
    return xs.map((x) => values.get(x));
  })];
  const round = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(4)));
  const options = {
    title: chart.title,
    width: Math.max(320, holder.clientWidth),
    height: 300,
    scales: { x: { time: false } },
    axes: [{ label: chart.x_title }, { label: chart.y_title }],
    series: [
      { label: chart.x_title, value: (_, value) => round(value) },
      ...chart.lines.map((line) => ({
        label: line.name, stroke: line.colour, width: 2, dash: line.dashed ? DASH : undefined, spanGaps: true,
        points: { show: line.x.length < 40 }, value: (_, value) => round(value),
      })),
    ],
  };
  holder.chart = new window.uPlot(options, data, holder);
  new ResizeObserver(() => holder.chart.setSize({ width: Math.max(320, holder.clientWidth), height: 300 })).observe(holder);
}
