// The 3-D section of report.html: tetrahedra of every arm, cut where the reader wants, coloured by what SfePy found.
// Bundled with three.js into viewer.min.js (see README.md here); reads the JSON that fem/scene.py wrote.
import {
  AmbientLight, BufferAttribute, BufferGeometry, Color, DirectionalLight, DoubleSide, Group, Mesh, MeshBasicMaterial, MeshLambertMaterial,
  OrthographicCamera, Plane, Raycaster, Scene, Vector2, Vector3, WebGLRenderer,
} from 'three';
import {OrbitControls} from 'three/examples/jsm/controls/OrbitControls.js';

const VIEWS = {oblique: [0.7, -1, 0.45], anterior: [0, -1, 0], left: [1, 0, 0], cranial: [0, -1e-4, 1]};
const CORNERS = [[1, 2, 3, 0], [0, 3, 2, 1], [0, 1, 3, 2], [0, 2, 1, 3]];

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}

// nodes [3n] mm, tets [4m], region [m], fields[k] [m] in 0..255; surfaces: per region the boundary triangles and the tetrahedron of each
function decode(arm, buffer, data) {
  let at = 0;
  const take = (Kind, count) => { const a = new Kind(buffer, at, count); at += count * Kind.BYTES_PER_ELEMENT; return a; };
  const n = arm.nodes, m = arm.tets;
  const coarse = take(Uint16Array, 3 * n), nodes = new Float32Array(3 * n);
  for (let i = 0; i < 3 * n; i++) nodes[i] = arm.low_mm[i % 3] + coarse[i] * arm.step_mm[i % 3];
  if (at % 4) at += 4 - at % 4;
  const tets = take(Uint32Array, 4 * m), region = take(Uint8Array, m), fields = data.loads.map(() => take(Uint8Array, m));
  const open = new Map();
  for (let t = 0; t < m; t++) for (const [a, b, c] of CORNERS) {
    const f = [tets[4 * t + a], tets[4 * t + b], tets[4 * t + c]], s = [...f].sort((p, q) => p - q);
    const key = (s[0] * n + s[1]) * n + s[2], other = open.get(key);
    if (other && other.region === region[t]) open.delete(key);
    else open.set(other ? key + 0.5 : key, {f, t, region: region[t]});
  }
  const surfaces = data.regions.map(() => ({corner: [], tet: []}));
  for (const {f, t, region: r} of open.values()) { surfaces[r].corner.push(...f); surfaces[r].tet.push(t); }
  return {nodes, tets, region, fields, surfaces};
}

class Picture {
  constructor(box, data) {
    this.data = data;
    this.state = {arm: data.arms[0].name, beside: '', field: data.loads.length > 1 ? 1 : 0, colour: true, hidden: new Set(['remnant']), opacity: 1, cut: 'none',
      at: 0.5, explode: 0};
    this.canvas = box.querySelector('canvas');
    this.say = box.querySelector('[role=status]');
    this.renderer = new WebGLRenderer({canvas: this.canvas, antialias: true, preserveDrawingBuffer: true});
    this.renderer.localClippingEnabled = true;
    this.renderer.setClearColor('#ffffff');
    this.camera = new OrthographicCamera();
    this.camera.up.set(0, 0, 1);
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.enableDamping = false;
    this.controls.addEventListener('change', () => this.draw());
    this.low = new Vector3(...data.low_mm); this.high = new Vector3(...data.high_mm);
    this.middle = this.low.clone().add(this.high).multiplyScalar(0.5);
    this.radius = this.high.distanceTo(this.low) / 2;
    this.scenes = {};
    this.colours = data.colours.map(c => new Color(c));
    this.plain = Object.fromEntries(Object.entries(data.plain).map(([r, c]) => [r, new Color(c)]));
    this.letters = [];
    this.wire(box);
    this.look('oblique');
    new ResizeObserver(() => requestAnimationFrame(() => this.resize())).observe(this.canvas.parentElement);
  }

  async scene(name) {
    if (this.scenes[name]) return this.scenes[name];
    const arm = this.data.arms.find(a => a.name === name);
    const mesh = decode(arm, await unpack(arm.data), this.data);
    const scene = new Scene(), sun = new DirectionalLight('#ffffff', 2.0), bodies = [];
    sun.position.set(0.4, -1, 0.8); scene.add(sun, new AmbientLight('#ffffff', 1.4));
    this.data.regions.forEach((region, r) => {
      const s = mesh.surfaces[r], group = new Group();
      group.name = region; bodies.push(group); scene.add(group);
      if (!s.tet.length) return;
      const g = new BufferGeometry(), xyz = new Float32Array(9 * s.tet.length);
      for (let i = 0; i < s.corner.length; i++) for (let k = 0; k < 3; k++) xyz[3 * i + k] = mesh.nodes[3 * s.corner[i] + k];
      g.setAttribute('position', new BufferAttribute(xyz, 3));
      g.setAttribute('color', new BufferAttribute(new Float32Array(xyz.length), 3));
      g.computeVertexNormals();
      const outside = new Mesh(g, new MeshLambertMaterial({vertexColors: true, side: DoubleSide, clippingPlanes: [new Plane()]}));
      const inside = new Mesh(new BufferGeometry(), new MeshBasicMaterial({vertexColors: true, side: DoubleSide}));
      outside.userData.tet = s.tet;
      group.add(outside, inside);
    });
    return this.scenes[name] = {scene, bodies, mesh, arm};
  }

  colour(mesh, t) {
    const region = this.data.regions[mesh.region[t]];
    if (!this.state.colour || (region !== 'caudal' && region !== 'cranial')) return this.plain[region];
    return this.colours[mesh.fields[this.state.field][t]];
  }

  offset(r) {
    const d = this.state.explode * 45, region = this.data.regions[r];
    return new Vector3(region === 'remnant' ? d : 0, region === 'graft' ? -d : 0, region === 'cranial' ? d : region === 'caudal' ? -d : 0);
  }

  paint({bodies, mesh}) {
    const s = this.state, axis = 'xyz'.indexOf(s.cut), lowest = this.low.toArray(), highest = this.high.toArray();
    const at = axis < 0 ? 0 : lowest[axis] + s.at * (highest[axis] - lowest[axis]);
    bodies.forEach((group, r) => {
      group.visible = !s.hidden.has(group.name);
      group.position.copy(this.offset(r));
      const [outside, inside] = group.children;
      if (!outside) return;
      const colours = outside.geometry.attributes.color;
      outside.userData.tet.forEach((t, i) => { const c = this.colour(mesh, t); for (let k = 0; k < 3; k++) colours.setXYZ(3 * i + k, c.r, c.g, c.b); });
      colours.needsUpdate = true;
      const bone = group.name === 'caudal' || group.name === 'cranial', m = outside.material;
      m.transparent = bone && s.opacity < 1; m.opacity = bone ? s.opacity : 1; m.depthWrite = !m.transparent; m.needsUpdate = true;
      if (axis < 0) { m.clippingPlanes = []; inside.visible = false; return; }
      const normal = new Vector3().setComponent(axis, axis === 1 ? 1 : -1);
      m.clippingPlanes = [new Plane(normal, -normal.getComponent(axis) * (at + group.position.getComponent(axis)))];
      inside.visible = group.visible;
      inside.geometry.dispose();
      inside.geometry = this.section(mesh, r, axis, at);
    });
  }

  // Where the plane cuts each tetrahedron of a region: a triangle or two.
  section(mesh, r, axis, at) {
    const xyz = [], rgb = [], tet = [], {nodes, tets} = mesh, d = [0, 0, 0, 0];
    for (let t = 0; t < mesh.region.length; t++) {
      if (mesh.region[t] !== r) continue;
      let above = 0;
      for (let i = 0; i < 4; i++) { d[i] = nodes[3 * tets[4 * t + i] + axis] - at; if (d[i] > 0) above++; }
      if (above === 0 || above === 4) continue;
      const up = [], down = [], cross = (i, j) => {
        const w = d[i] / (d[i] - d[j]), a = 3 * tets[4 * t + i], b = 3 * tets[4 * t + j];
        return [0, 1, 2].map(k => nodes[a + k] + w * (nodes[b + k] - nodes[a + k]));
      };
      for (let i = 0; i < 4; i++) (d[i] > 0 ? up : down).push(i);
      const p = above === 2 ? [cross(up[0], down[0]), cross(up[0], down[1]), cross(up[1], down[1]), cross(up[1], down[0])]
        : above === 1 ? down.map(j => cross(up[0], j)) : up.map(i => cross(i, down[0]));
      const c = this.colour(mesh, t);
      for (let i = 2; i < p.length; i++) { xyz.push(...p[0], ...p[i - 1], ...p[i]); for (let k = 0; k < 3; k++) rgb.push(c.r, c.g, c.b); tet.push(t); }
    }
    const g = new BufferGeometry();
    g.setAttribute('position', new BufferAttribute(new Float32Array(xyz), 3));
    g.setAttribute('color', new BufferAttribute(new Float32Array(rgb), 3));
    g.userData.tet = tet;
    return g;
  }

  // Where the cut is, mm.
  place() {
    const axis = 'xyz'.indexOf(this.state.cut), low = this.low.getComponent(axis);
    return low + this.state.at * (this.high.getComponent(axis) - low);
  }

  shown() { return this.state.beside ? [this.state.arm, this.state.beside] : [this.state.arm]; }

  async update() {
    for (const name of this.shown()) this.paint(await this.scene(name));
    this.draw();
    const s = this.state, names = this.shown().map(n => this.data.arms.find(a => a.name === n).label);
    const cut = s.cut === 'none' ? '' : `, cut at ${s.cut} = ${this.place().toFixed(1)} mm`, off = s.hidden.size ? `; not shown: ${[...s.hidden].map(r => this.data.words[r]).join(', ')}` : '';
    this.say.textContent = `${names.join(' (left) and ')}${names.length > 1 ? ' (right)' : ''}: ${s.colour ? this.data.loads[s.field].replaceAll('_', ' ') +
      ', compressive strain in bone' : 'plain colours'}${cut}${off}.`;
    return this.state;
  }

  draw() {
    const w = this.canvas.clientWidth, h = this.canvas.clientHeight, names = this.shown().filter(n => this.scenes[n]);
    if (!w || !names.length) return;
    const part = w / names.length;
    this.renderer.setScissorTest(true);
    names.forEach((name, i) => {
      const half = this.radius * 0.85 * (1 + 0.35 * this.state.explode), aspect = part / h;
      this.camera.left = -half * Math.max(aspect, 1); this.camera.right = half * Math.max(aspect, 1);
      this.camera.top = half * Math.max(1 / aspect, 1); this.camera.bottom = -half * Math.max(1 / aspect, 1);
      this.camera.near = 0.1; this.camera.far = 20 * this.radius; this.camera.updateProjectionMatrix();
      this.renderer.setViewport(i * part, 0, part, h); this.renderer.setScissor(i * part, 0, part, h);
      this.renderer.render(this.scenes[name].scene, this.camera);
      this.mark(i, part, h);
    });
    this.letters.forEach((e, i) => { if (i >= 6 * names.length) e.hidden = true; });
  }

  // A compass in the lower left corner of the picture of that number: each end of x, y and z by its letter, an axis along the sight left out.
  mark(number, width, height) {
    const m = this.camera.matrixWorldInverse.elements, centre = [number * width + 62, height - 62];
    this.data.letters.forEach((pair, axis) => pair.forEach((text, end) => {
      const k = 6 * number + 2 * axis + end, sign = end ? -1 : 1, right = sign * m[4 * axis], up = sign * m[4 * axis + 1];
      if (!this.letters[k]) {
        const line = document.createElement('i'), letter = Object.assign(document.createElement('span'), {textContent: text});
        this.letters[k] = Object.assign(document.createElement('div'), {className: 'letter'});
        this.letters[k].setAttribute('aria-hidden', 'true');
        this.letters[k].append(line, letter);
        this.canvas.parentElement.append(this.letters[k]);
      }
      const [line, letter] = this.letters[k].children, long = Math.hypot(right, up), reach = 1 + 14 / (36 * long);
      Object.assign(this.letters[k].style, {left: `${centre[0]}px`, top: `${centre[1]}px`});
      Object.assign(line.style, {width: `${36 * long}px`, transform: `rotate(${Math.atan2(-up, right)}rad)`});
      Object.assign(letter.style, {left: `${36 * reach * right}px`, top: `${-36 * reach * up}px`});
      this.letters[k].hidden = long < 0.25;
    }));
  }

  resize() {
    const w = this.canvas.parentElement.clientWidth;
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    this.renderer.setSize(w, Math.min(Math.max(0.6 * w, 320), 620));
    this.draw();
  }

  look(name) {
    this.controls.target.copy(this.middle);
    this.camera.position.copy(this.middle).addScaledVector(new Vector3(...VIEWS[name]).normalize(), 5 * this.radius);
    this.camera.zoom = 1;
    this.controls.update(); this.draw();
  }

  turn(right, up) {
    const away = this.camera.position.clone().sub(this.middle), flat = Math.hypot(away.x, away.y);
    const azimuth = Math.atan2(away.y, away.x) + right, height = Math.min(Math.max(Math.atan2(away.z, flat) + up, -1.55), 1.55), r = away.length();
    this.camera.position.copy(this.middle).add(new Vector3(Math.cos(height) * Math.cos(azimuth), Math.cos(height) * Math.sin(azimuth),
      Math.sin(height)).multiplyScalar(r));
    this.controls.update(); this.draw();
  }

  pick(x, y) {
    const names = this.shown(), part = this.canvas.clientWidth / names.length, side = Math.min(Math.floor(x / part), names.length - 1);
    const held = this.scenes[names[side]], ray = new Raycaster();
    this.draw();
    ray.setFromCamera(new Vector2(2 * (x - side * part) / part - 1, 1 - 2 * y / this.canvas.clientHeight), this.camera);
    const targets = held.bodies.filter(b => b.visible).flatMap(b => b.children.filter(c => c.visible && c.geometry.attributes.position));
    const hit = ray.intersectObjects(targets, false).find(h => (h.object.material.clippingPlanes || []).every(p => p.distanceToPoint(h.point) >= -1e-3));
    if (!hit) return null;
    const tet = (hit.object.userData.tet || hit.object.geometry.userData.tet)[hit.faceIndex], region = this.data.regions[held.mesh.region[tet]];
    const raw = held.mesh.fields[this.state.field][tet] / 255, p = hit.point.clone().sub(hit.object.parent.position);
    const value = region === 'implant' ? `von Mises stress ${(raw * this.data.stress_mpa).toFixed(1)} MPa`
      : `smallest principal strain ${(-raw * this.data.strain_percent).toFixed(2)} %`;
    const words = `${this.data.words[region]}: ${value} at x ${p.x.toFixed(1)}, y ${p.y.toFixed(1)}, z ${p.z.toFixed(1)} mm`;
    this.say.textContent = words;
    return words;
  }

  // A new cut begins at the implant's middle.
  through(box) {
    const axis = 'xyz'.indexOf(this.state.cut), slider = box.querySelector('[name=at]');
    if (axis < 0) return;
    const low = this.low.getComponent(axis), share = (this.data.implant_mm[axis] - low) / (this.high.getComponent(axis) - low);
    this.state.at = share; slider.value = Math.round(100 * share);
  }

  wire(box) {
    const s = this.state, on = (name, kind, act) => { const e = box.querySelector(`[name=${name}]`); e.addEventListener(kind, () => { act(e); this.update(); }); };
    on('arm', 'change', e => { s.arm = e.value; });
    on('beside', 'change', e => { s.beside = e.value; });
    on('field', 'change', e => { s.colour = e.value !== ''; if (s.colour) s.field = +e.value; });
    on('opacity', 'input', e => { s.opacity = e.value / 100; });
    on('cut', 'change', e => { s.cut = e.value; this.through(box); });
    on('at', 'input', e => { s.at = e.value / 100; });
    on('explode', 'input', e => { s.explode = e.value / 100; });
    for (const e of box.querySelectorAll('[name=body]')) e.addEventListener('change', () => {
      e.checked ? s.hidden.delete(e.value) : s.hidden.add(e.value); this.update(); });
    for (const b of box.querySelectorAll('button[data-view]')) b.addEventListener('click', () => this.look(b.dataset.view));
    this.canvas.addEventListener('keydown', e => {
      const turns = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1]}, zoom = {'+': 1.1, '=': 1.1, '-': 1 / 1.1};
      if (turns[e.key]) this.turn(...turns[e.key]);
      else if (zoom[e.key]) { this.camera.zoom *= zoom[e.key]; this.draw(); }
      else if (Object.keys(VIEWS)[+e.key - 1]) this.look(Object.keys(VIEWS)[+e.key - 1]);
      else return;
      e.preventDefault();
    });
    let pressed = null;
    this.canvas.addEventListener('pointerdown', e => { pressed = [e.clientX, e.clientY]; });
    this.canvas.addEventListener('pointerup', e => {
      if (pressed && Math.hypot(e.clientX - pressed[0], e.clientY - pressed[1]) < 4) {
        const r = this.canvas.getBoundingClientRect(); this.pick(e.clientX - r.left, e.clientY - r.top); }
      pressed = null;
    });
  }
}

async function begin() {
  const box = document.getElementById('viewer'), note = box.querySelector('[role=status]');
  try {
    const data = JSON.parse(document.getElementById('viewer-data').textContent), picture = new Picture(box, data);
    window.spinefitViewer = picture;
    await picture.update();
    picture.resize();
    document.body.dataset.viewer = 'ready';
  } catch (error) { // without WebGL, or in an old browser: the pictures further down show the same
    note.textContent = `The view in three dimensions cannot be shown here (${error.message}); the pictures below show the same.`;
    box.querySelector('.stage').hidden = true;
    document.body.dataset.viewer = 'failed';
  }
}
begin();
