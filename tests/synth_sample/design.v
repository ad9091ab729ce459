module sample_counter (
  clk,
  enable,
  count
);
  input clk;
  input enable;
  output [3:0] count;
  reg [3:0] value = 4'h0;
  assign count = value;
  always @(posedge clk)
    if (enable) value <= value + 4'h3;
endmodule

module sample_top (
  clk,
  go,
  total
);
  input clk;
  input go;
  output [3:0] total;
  wire [3:0] left;
  wire [3:0] right;
  reg [3:0] sum = 4'h0;
  assign total = sum;
  always @(posedge clk) sum <= left ^ right;
  sample_counter counter_0 (
    .clk(clk),
    .count(left),
    .enable(go)
  );
  sample_counter counter_1 (
    .clk(clk),
    .count(right),
    .enable(left[3])
  );
endmodule
