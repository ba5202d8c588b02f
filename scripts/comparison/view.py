"""The devices of two runs side by side in three dimensions, on the page of scripts/compare.py;
drawn by its Plotly, cameras coupled."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np

from engine import artifacts
from engine.part import surface
from engine.patient import load_segment
from engine.types import Surface
from scripts.comparison.tables import Found

#: Triangles of a device and of a vertebra: enough to see the shape, and a hundred devices stay a
#: few megabytes.
DEVICE_FACES, BONE_FACES = 1600, 1800
ARMS = ("optimised", "conforming", "stock")


def collected(found: Found) -> dict[str, Any]:
    """Shapes by their content, and which of them each run shows: seeds share rivals, runs of a
    patient its vertebrae. Runs without parts are left out."""
    shapes: dict[str, dict[str, list[float] | list[int]]] = {}
    bones: dict[str, list[str]] = {}
    runs = []
    for run in found.runs:
        parts = {}
        for arm in ARMS:
            path = run.folder / "designs" / arm / "implant.stl"
            if path.exists():
                name = artifacts.sha256_file(path)[:12]
                if name not in shapes:
                    shapes[name] = _plain(surface.read(path), DEVICE_FACES)
                parts[arm] = name
        if not parts or not (run.folder / "segment").is_dir():
            continue
        if run.patient not in bones:
            segment = load_segment(run.folder / "segment")
            bones[run.patient] = []
            for v in (segment.caudal, segment.cranial):
                name = f"{run.patient} {v.name}"
                shapes[name] = _plain(v.surface, BONE_FACES)
                bones[run.patient].append(name)
        runs.append(
            {
                "name": f"{run.patient}, {run.objectives}, seed {run.seed}",
                "bones": bones[run.patient],
                "parts": parts,
            }
        )
    return {"shapes": shapes, "runs": runs}


def _plain(full: Surface, faces: int) -> dict[str, list[float] | list[int]]:
    """Vertices in mm (to 0.01) and triangles, flat."""
    few = surface.fewer(full, faces)
    return {
        "p": np.round(np.asarray(few.points_mm), 2).ravel().tolist(),
        "f": np.asarray(few.faces).ravel().tolist(),
    }


def section(data: dict[str, Any]) -> tuple[str, str]:
    """HTML and script; the script needs Plotly on the page."""
    if not data["runs"]:
        return "<p>No run folder holds its parts: nothing to show in three dimensions.</p>", ""
    options = "".join(
        f'<option value="{i}">{escape(r["name"])}</option>' for i, r in enumerate(data["runs"])
    )
    arms = "".join(f'<option value="{a}">{a}</option>' for a in ARMS)
    views = "".join(
        f'<button type="button" data-look="{v}">{v}</button> '
        for v in ("oblique", "anterior", "left", "cranial")
    )
    sides = "".join(
        f'<div style="flex:1 1 320px;min-width:0"><label>{side} <select'
        f' id="view-run-{k}">{options}</select></label> <label>arm <select'
        f' id="view-arm-{k}">{arms}</select></label><div id="view-{k}" role="img"'
        f' aria-label="Device and vertebra, {side} side: as chosen above it"'
        ' style="height:420px"></div></div>'
        for k, side in enumerate(("left", "right"))
    )
    shown = "".join(
        f'<option value="{n}">{words}</option>'
        for n, words in ((1, "lower"), (2, "both"), (0, "none"))
    )
    bones = f'<label>vertebrae <select id="view-bones">{shown}</select></label>'
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    head = (
        '<p class="quiet">Drag to turn (both turn together), wheel to zoom. x to the patient\'s'
        " left, y to the back, z up.</p>"
    )
    html = (
        f"{head}<p>{views}{bones}</p><div"
        f' style="display:flex;flex-wrap:wrap;gap:.6rem">{sides}</div>'
    )
    return html, f"<script>const PARTS={text};\n{_JS}</script>"


_JS = r"""
(function(){
  const LOOK={oblique:[0.9,-1.5,0.9],anterior:[0,-2.1,0.05],left:[2.1,0,0.05],cranial:[0,-0.01,2.1]},el=id=>document.getElementById(id);
  const mesh=(name,color,opacity)=>{const s=PARTS.shapes[name],pick=(a,k)=>a.filter((_,i)=>i%3===k);
    return {type:'mesh3d',x:pick(s.p,0),y:pick(s.p,1),z:pick(s.p,2),i:pick(s.f,0),j:pick(s.f,1),k:pick(s.f,2),color,opacity,
      flatshading:true,hoverinfo:'skip',lighting:{ambient:0.7,diffuse:0.7,specular:0.1}}};
  let camera={eye:{x:0.9,y:-1.5,z:0.9},up:{x:0,y:0,z:1}},busy=false;
  const none={visible:false};
  function show(k){
    const run=PARTS.runs[+el('view-run-'+k).value],part=run.parts[el('view-arm-'+k).value],n=+el('view-bones').value;
    const traces=run.bones.slice(0,n).map(b=>mesh(b,'#d9cfb8',n===2?0.35:0.8));
    if(part)traces.push(mesh(part,'#3f7fae',1));
    return Plotly.react('view-'+k,traces,{margin:{l:0,r:0,t:0,b:0},uirevision:'same',
      scene:{aspectmode:'data',camera,xaxis:none,yaxis:none,zaxis:none},
      annotations:part?[]:[{text:'this run has no such part',showarrow:false}]},{displaylogo:false,responsive:true})}
  function couple(k){el('view-'+k).on('plotly_relayout',e=>{
    if(busy||!e['scene.camera'])return;busy=true;camera=e['scene.camera'];
    Plotly.relayout('view-'+(1-k),{'scene.camera':camera}).then(()=>{busy=false})})}
  el('view-run-1').selectedIndex=Math.min(1,PARTS.runs.length-1);
  Promise.all([show(0),show(1)]).then(()=>{couple(0);couple(1);document.body.dataset.view='ready'});
  for(const k of [0,1])for(const what of ['run','arm'])el('view-'+what+'-'+k).addEventListener('change',()=>show(k));
  el('view-bones').addEventListener('change',()=>{show(0);show(1)});
  for(const b of document.querySelectorAll('button[data-look]'))b.addEventListener('click',()=>{const [x,y,z]=LOOK[b.dataset.look];
    camera={eye:{x,y,z},up:{x:0,y:0,z:1}};busy=true;
    Promise.all([0,1].map(k=>Plotly.relayout('view-'+k,{'scene.camera':camera}))).then(()=>{busy=false})});
})();
"""
