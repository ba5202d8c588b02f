// Two devices side by side, from PARTS (scripts/comparison/view.py); drawn by Plotly.
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
