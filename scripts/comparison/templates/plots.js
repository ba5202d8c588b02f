// The plots of a comparison's page, from DATA (scripts/comparison/plots.py); drawn by Plotly.
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
