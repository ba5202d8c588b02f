"""The page of scripts/compare.py: one file, no network; every plot has its table, every point
leads to its run."""

from __future__ import annotations

import io
import json
import os
from html import escape
from itertools import permutations, product
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from engine import artifacts
from engine.page import bullets, document, image, percent, table, text
from scripts.comparison import tables
from scripts.comparison.tables import CompareConfig, Found, Run, arms_of, front, matrix, statistics
from scripts.comparison.view import collected, section
from scripts.run.config import FLOORS

_SIGN = {"lower": -1.0, "higher": 1.0, "neither": 0.0}
#: Okabe and Ito's colours, told apart by the colour-blind.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255")
_RIVALS = {
    "stock": "square-open",
    "conforming": "diamond-open",
    "intact": "x-thin-open",
    "full_endplate": "cross-thin-open",
}


def write(found: Found, config: CompareConfig) -> Path:
    """Write <out>/report.html. Raises ValueError when the runs' units differ."""
    out = Path(config.out)
    view, view_script = section(collected(found)) if config.view3d else ("<p>view3d=false.</p>", "")
    sections = [
        ("What is compared", _compared(found, out)),
        (
            "What was optimised, and what that did",
            _cross(found, "stock") + _cross(found, "conforming"),
        ),
        (
            "Trade-offs",
            _plot(
                "pareto",
                "Pareto fronts. Filled points: optimised devices; open ones: rivals and floors of"
                " the same runs. A click opens the run's report.",
            )
            + _front_table(found),
        ),
        (
            "All measures at once",
            _plot(
                "parallel",
                "Parallel coordinates of the optimised devices; drag along an axis to choose.",
            ),
        ),
        ("Objective sets against each other", _statistics(found, config.seed)),
        (
            "The searches",
            _plot(
                "convergence",
                "Loss (losses of different objective sets are not comparable) and largest"
                " violation.",
            ),
        ),
        ("Two devices side by side", view),
        ("The devices", _pictures(found, out, config.pictures)),
        ("The tables", _tables()),
    ]
    created = max(r.result.created for r in found.runs)
    data = json.dumps(_data(found, out), allow_nan=False).replace("</", "<\\/")
    script = (
        f"<script>{get_plotlyjs()}</script>\n<script>const"
        f" DATA={data};\n{_JS}</script>{view_script}"
    )
    title = config.title or f"Comparison of {len(found.runs)} runs"
    return artifacts.write_text(
        out / "report.html",
        document(title, f"newest run begun {created}", _warnings(found), sections, script),
    )


def _warnings(found: Found) -> list[str]:
    lines = (
        [f"{len(found.left_out)} runs are not in the comparison; see below why."]
        if found.left_out
        else []
    )
    patients = {r.patient for r in found.runs}
    if len(patients) < 2:
        lines.append("One patient only: nothing here says how another anatomy would do.")
    broken = [
        r.name for r in found.runs if r.value("optimised", next(iter(found.measures()))) is None
    ]
    if broken:
        lines.append(
            "No numbers for the optimised device of"
            f" {', '.join(broken[:5])}{' …' if len(broken) > 5 else ''}."
        )
    return lines


# -- sections --------------------------------------------------------------------------------------
def _link(run: Run, out: Path, words: str) -> str:
    target = os.path.relpath(run.folder / "report.html", out)
    return (
        f'<a href="{escape(target)}">{escape(words)}</a>'
        if (run.folder / "report.html").exists()
        else escape(words)
    )


def _compared(found: Found, out: Path) -> str:
    rows = [
        (
            _link(r, out, r.name),
            text(escape(r.patient)),
            text(escape(r.objectives)),
            str(r.seed),
            text(escape(r.result.optimisation.status.text if r.result.optimisation else "")),
            f"{sum(r.result.timings_s.values()) / 60:.1f}",
        )
        for r in found.runs
    ]
    runs = table(
        f"{len(found.runs)} runs", ("run", "patient", "objectives", "seed", "search", "min"), rows
    )
    patients, seeds = ({getattr(r, name) for r in found.runs} for name in ("patient", "seed"))
    starts = ", ".join(map(str, sorted(seeds)))
    head = (
        f"{len(found.runs)} runs: {len(patients)} patients, {len(found.sets())} objective sets,"
        f" seeds {starts}"
    )
    parts = [
        f"<details{' open' if len(rows) <= 12 else ''}><summary>{head}</summary>{runs}</details>"
    ]
    if found.left_out:
        parts.append(
            "<h3>Left out</h3>" + bullets([f"{folder}: {why}" for folder, why in found.left_out])
        )
    if found.differing:
        lines = []
        for key, values in found.differing.items():
            counts: dict[str, int] = {}
            for v in values:
                shown = _goals(v) if key == "study.goals" else json.dumps(v)
                counts[shown] = counts.get(shown, 0) + 1
            said = ", ".join(
                f"{v if len(v) < 200 else v[:197] + '…'} ({n})" for v, n in list(counts.items())[:8]
            )
            lines.append(
                (
                    f'<code style="white-space:nowrap">{escape(key)}</code>',
                    text(escape(said + (" …" if len(counts) > 8 else ""))),
                )
            )
        whole = table(
            "Configuration keys in which the runs differ (runs); all others are equal",
            ("key", "values"),
            lines,
        )
        head = (
            f"<details{' open' if len(lines) <= 12 else ''}><summary>{len(lines)} configuration"
            " keys differ</summary>"
        )
        parts.append(f"{head}{whole}</details>")
    else:
        parts.append("<p>All configuration keys are equal.</p>")
    return "".join(parts)


def _goals(goals: list[dict[str, Any]]) -> str:
    """A set of goals in few words."""
    said = []
    for g in goals:
        kind = g.get("kind", "minimise")
        what = f"× {g.get('weight', 1.0):g}" if kind == "minimise" else f"{kind} {g['bound']:g}"
        said.append(f"{g['objective']} {what}".replace("_", " "))
    return "; ".join(said)


def _cross(found: Found, against: str) -> str:
    measures, changes = found.measures(), matrix(found, against)
    goals = {
        s: frozenset.union(*(r.minimised for r in found.runs if r.objectives == s))
        for s in found.sets()
    }
    rows = []
    for name, cells in changes.items():
        row = [escape(name)]
        for measure, (_, better) in measures.items():
            if measure not in cells:
                row.append('<td class="none">—</td>')
                continue
            value, count = cells[measure]
            good = _SIGN[better] * value
            colour = "0,114,178" if good > 0 else "213,94,0"
            shade = (
                ""
                if abs(good) < 0.5
                else f' style="background:rgba({colour},{min(abs(good) / 100, 0.45):.2f})"'
            )
            mark = " ●" if measure in goals[name] else ""
            row.append(f'<td{shade} title="{count} runs">{percent(value / 100)}{mark}</td>')
        rows.append(row)
    if not any(changes.values()):
        return f"<p>No run has numbers for both the optimised and the {against} arm.</p>"
    head = ("optimised for", *(escape(m.replace("_", " ")) for m in measures))
    caption = (
        f"Median change of the optimised device against the {against} arm of the same run, as SfePy"
        " measures it. ● minimised by that objective set; without ● it was not. Blue: better,"
        " orange: worse (volume of metal: neither)."
    )
    return table(caption, head, rows)


def _front_table(found: Found) -> str:
    x, y = _default_pair(found)
    better = (found.measures()[x][1], found.measures()[y][1])
    points = [_pair(_of_stock(r, x), _of_stock(r, y)) for r in found.runs]
    rows = []
    for i in front(points, better):
        run, point = found.runs[i], points[i]
        assert point is not None
        rows.append(
            (
                escape(run.name),
                text(escape(run.patient)),
                text(escape(run.objectives)),
                *(percent(v - 1.0) for v in point),
            )
        )
    head = ("run", "patient", "objectives", *(escape(m.replace("_", " ")) for m in (x, y)))
    whole = table(
        "Not dominated among all optimised devices, as change against the stock arm", head, rows
    )
    return f"<details><summary>Runs on the front</summary>{whole}</details>"


def _statistics(found: Found, seed: int) -> str:
    rows, every = [], statistics(found, seed)
    if not every:
        return (
            "<p>One objective set, or no patient that two of them share: nothing to set against"
            " each other.</p>"
        )

    def interval(low: float | None, high: float | None) -> str:
        return (
            "too few"
            if low is None or high is None
            else f"{percent(low / 100)} to {percent(high / 100)}"
        )

    for r in every:
        p = "too few" if r["p"] is None else f"{r['p']:.3g}"
        rows.append(
            (
                f"{escape(r['second'])} against {escape(r['first'])}",
                text(escape(r["measure"].replace("_", " "))),
                f"{r['patients']} ({r['seeds_second']}, {r['seeds_first']})",
                percent(r["change_percent"] / 100),
                interval(r["low_percent"], r["high_percent"]),
                interval(r["cluster_low_percent"], r["cluster_high_percent"]),
                "—" if r["rank_biserial"] is None else f"{r['rank_biserial']:+.2f}",
                p,
                "—" if r["p_holm"] is None else f"{r['p_holm']:.3g}",
            )
        )
    head = (
        "optimised devices",
        "measure",
        "patients (runs)",
        "change",
        "95 %, patients",
        "95 %, patients and seeds",
        "rank biserial",
        "p",
        "p (Holm)",
    )
    note = (
        "Paired by patient: seeds of one patient are averaged first (logarithms), as they are not"
        " independent. Change: Hodges-Lehmann. Intervals: bootstrap of the mean, BCa over patients,"
        " and percentile over patients and seeds within them, from four patients on. p: Wilcoxon's"
        " signed ranks, from six patients on (with fewer it cannot reach 0.05), and with Holm's"
        " correction for all tests of this table. Rank biserial: +1 when the measure rises in every"
        " patient, −1 when it falls in every one."
    )
    return f"<p>{note}</p>" + table("How the optimised devices differ", head, rows)


def _pictures(found: Found, out: Path, name: str) -> str:
    figures = []
    for run in found.runs if name != "none" else ():
        if (path := run.folder / "pictures" / f"{name}.png").exists():
            title = f"{run.objectives}, {run.patient}, seed {run.seed}"
            figure = image(_small(path), title, f"Optimised device of {title}")
            figures.append(
                figure.replace("<figcaption>", f"<figcaption>{_link(run, out, 'report')}: ")
            )
    if not figures:
        return "<p>No pictures were asked for, or none is in the run folders.</p>"
    return f'<div class="pictures">{"".join(figures)}</div>'


def _small(path: Path, width: int = 420) -> bytes:
    """The picture as a smaller PNG with few colours: a page may hold a hundred."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
        stream = io.BytesIO()
        small.quantize(64).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _tables() -> str:
    query = (
        "SELECT objectives, median(value) FROM 'measures.parquet'\n"
        "WHERE arm = 'optimised' AND measure = 'yielded_bone' GROUP BY objectives"
    )
    files = bullets(
        [
            "measures.csv, measures.parquet: " + ", ".join(tables.COLUMNS),
            "loads.csv, loads.parquet: the same by load case",
            "statistics.csv, statistics.parquet: the table above",
            "summary.md: what each set did, patient by patient",
        ]
    )
    return f"{files}<p>With DuckDB, in this folder:</p><pre>{escape(query)}</pre>"


def _plot(name: str, words: str) -> str:
    return (
        f'<p class="quiet" id="{name}-words">{words}</p><div id="{name}-choice"></div><div'
        f' id="{name}" role="img" aria-labelledby="{name}-words"'
        ' style="width:100%;height:520px"></div>'
    )


# -- what the plots are made of --------------------------------------------------------------------
def _pair(a: float | None, b: float | None) -> tuple[float, float] | None:
    return None if a is None or b is None else (a, b)


def _of_stock(run: Run, measure: str) -> float | None:
    """The optimised device's share of the stock arm's value: patients differ by more than their
    implants do."""
    change = tables.change_percent(run, measure, "stock")
    return None if change is None else 1.0 + change / 100.0


def _default_pair(found: Found) -> tuple[str, str]:
    """The two measures that most runs minimise; else the first two there are."""
    names = list(found.measures())
    uses = sorted(names, key=lambda m: -sum(m in r.minimised for r in found.runs))
    return (uses[0], uses[1]) if len(uses) > 1 else (uses[0], uses[0])


def _data(found: Found, out: Path) -> dict[str, Any]:
    measures, sets = found.measures(), found.sets()
    colours = {s: _COLOURS[i % len(_COLOURS)] for i, s in enumerate(sets)}
    runs = [
        {
            "name": r.name,
            "patient": r.patient,
            "set": r.objectives,
            "seed": r.seed,
            "link": (
                os.path.relpath(r.folder / "report.html", out)
                if (r.folder / "report.html").exists()
                else None
            ),
            "arms": {
                a: {m: r.value(a, m) for m in measures}
                for a in arms_of(r)
                if a in ("optimised", *_RIVALS)
            },
            "history": [
                [h["iteration"], h.get("seconds"), h["objective"], h["violation"]]
                for h in r.history
            ],
        }
        for r in found.runs
    ]
    fronts = {}
    for relative, (x, y) in product((False, True), permutations(measures, 2)):
        points = [
            _pair(*(_of_stock(r, m) if relative else r.value("optimised", m) for m in (x, y)))
            for r in found.runs
        ]
        fronts[f"{int(relative)}|{x}|{y}"] = front(points, (measures[x][1], measures[y][1]))
    shown = {k: {"unit": u, "better": b} for k, (u, b) in measures.items()}
    return {
        "measures": shown,
        "sets": sets,
        "colours": colours,
        "rivals": _RIVALS,
        "floors": list(FLOORS),
        "runs": runs,
        "fronts": fronts,
        "pair": _default_pair(found),
        "relative": len({r.patient for r in found.runs}) > 1,
    }


_JS = r"""
const CONFIG={displaylogo:false,responsive:true,doubleClick:'autosize'};
const words=m=>m.replaceAll('_',' ')+' ('+DATA.measures[m].unit+')';
function choice(where,label,options,value,act){
  const box=document.createElement('label');box.textContent=label+' ';box.style.marginRight='1rem';
  const s=document.createElement('select');
  for(const [v,t] of options){const o=document.createElement('option');o.value=v;o.textContent=t;o.selected=v===value;s.append(o)}
  s.addEventListener('change',()=>act(s.value));box.append(s);document.getElementById(where).append(box)}
const about=r=>`${r.name}<br>${r.patient}, ${r.set}, seed ${r.seed}`;
let [X,Y]=DATA.pair,REL=DATA.relative;
function at(r,arm,m){const v=r.arms[arm]&&r.arms[arm][m];if(v==null||!REL)return v??null;
  const s=r.arms.stock&&r.arms.stock[m];return s&&Math.abs(s)>1e-9?v/s:null}
const axis=m=>REL?m.replaceAll('_',' ')+', of the stock arm of the same run':words(m);
function pareto(){
  const traces=[];
  for(const [arm,symbol] of Object.entries(DATA.rivals)){
    const rs=DATA.runs.filter(r=>at(r,arm,X)!=null&&at(r,arm,Y)!=null);
    if(rs.length)traces.push({x:rs.map(r=>at(r,arm,X)),y:rs.map(r=>at(r,arm,Y)),text:rs.map(about),customdata:rs.map(r=>r.link),
      mode:'markers',type:'scatter',name:arm.replaceAll('_',' ')+(DATA.floors.includes(arm)?' (floor)':''),
      marker:{symbol,size:10,color:'#5a6570',line:{width:1.5,color:'#5a6570'}}})}
  for(const set of DATA.sets){
    const rs=DATA.runs.filter(r=>r.set===set&&at(r,'optimised',X)!=null&&at(r,'optimised',Y)!=null);
    traces.push({x:rs.map(r=>at(r,'optimised',X)),y:rs.map(r=>at(r,'optimised',Y)),text:rs.map(about),customdata:rs.map(r=>r.link),
      mode:'markers',type:'scatter',name:set,marker:{size:11,color:DATA.colours[set]}})}
  const f=(DATA.fronts[(REL?1:0)+'|'+X+'|'+Y]||[]).map(i=>[X,Y].map(m=>at(DATA.runs[i],'optimised',m))).sort((a,b)=>a[0]-b[0]);
  traces.push({x:f.map(p=>p[0]),y:f.map(p=>p[1]),mode:'lines',type:'scatter',name:'front',hoverinfo:'skip',line:{color:'#1b1f23',dash:'dot',width:1}});
  // a floor may lie at twenty times the devices: the first view holds the devices, and what lies near them
  const near=k=>{const own=traces.filter(t=>!t.name.endsWith('(floor)')).flatMap(t=>t[k]),span=Math.max(...own)-Math.min(...own)||1,
    low=Math.min(...own)-span,high=Math.max(...own)+span,kept=traces.flatMap(t=>t[k]).filter(v=>v>=low&&v<=high),a=Math.min(...kept),b=Math.max(...kept);
    return own.length?[a-0.06*(b-a||1),b+0.06*(b-a||1)]:undefined},rx=near('x'),ry=near('y');
  const away=rx?traces.filter(t=>t.mode==='markers').flatMap(t=>t.x.filter((v,i)=>v<rx[0]||v>rx[1]||t.y[i]<ry[0]||t.y[i]>ry[1])).length:0;
  const note=away?[{xref:'paper',yref:'paper',x:0,xanchor:'left',y:1.05,showarrow:false,
    text:away+' floor points outside: double-click shows all'}]:[];
  Plotly.react('pareto',traces,{xaxis:{title:{text:axis(X)},range:rx},yaxis:{title:{text:axis(Y)},range:ry},annotations:note,margin:{t:20},legend:{orientation:'h',y:-0.18}},CONFIG)}
const all=Object.keys(DATA.measures).map(m=>[m,words(m)]);
choice('pareto-choice','across',all,X,v=>{X=v;pareto()});choice('pareto-choice','up',all,Y,v=>{Y=v;pareto()});
choice('pareto-choice','values',[['0','as measured'],['1','relative to the stock arm']],REL?'1':'0',v=>{REL=v==='1';pareto()});
pareto();
document.getElementById('pareto').on('plotly_click',e=>{const to=e.points[0].customdata;if(to)window.open(to,'_blank')});
(function(){
  const rs=DATA.runs.filter(r=>r.arms.optimised&&Object.values(r.arms.optimised).every(v=>v!=null));
  const n=DATA.sets.length,scale=[];
  DATA.sets.forEach((s,i)=>{scale.push([i/n,DATA.colours[s]],[(i+1)/n,DATA.colours[s]])});
  const dims=[{label:'optimised for',values:rs.map(r=>DATA.sets.indexOf(r.set)),tickvals:DATA.sets.map((_,i)=>i),ticktext:DATA.sets}];
  for(const m of Object.keys(DATA.measures))dims.push({label:m.replaceAll('_',' '),values:rs.map(r=>r.arms.optimised[m])});
  if(rs.length)Plotly.newPlot('parallel',[{type:'parcoords',labelangle:-18,line:{color:rs.map(r=>DATA.sets.indexOf(r.set)+0.5),
    colorscale:scale,cmin:0,cmax:n},dimensions:dims}],{margin:{t:110,l:110,r:60,b:30}},CONFIG);
  else document.getElementById('parallel').textContent='No run has all measures.'})();
let AT=0;
function convergence(){
  const traces=[],seen={};
  for(const r of DATA.runs){
    const base={x:r.history.map(h=>h[AT]),text:r.history.map(()=>about(r)),legendgroup:r.set,name:r.set,
      line:{color:DATA.colours[r.set],width:1.2},mode:'lines',type:'scatter'};
    traces.push({...base,y:r.history.map(h=>h[2]),showlegend:!seen[r.set]});
    traces.push({...base,y:r.history.map(h=>h[3]),showlegend:false,xaxis:'x2',yaxis:'y2'});seen[r.set]=1}
  const x=AT?'seconds of optimisation':'iteration';
  Plotly.react('convergence',traces,{grid:{rows:1,columns:2,pattern:'independent'},xaxis:{title:{text:x}},xaxis2:{title:{text:x}},
    yaxis:{title:{text:'loss'}},yaxis2:{title:{text:'largest violation'}},margin:{t:20},legend:{orientation:'h',y:-0.18}},CONFIG)}
choice('convergence-choice','against',[['0','iterations'],['1','seconds']],'0',v=>{AT=+v;convergence()});
convergence();
document.body.dataset.ready='yes';
"""
