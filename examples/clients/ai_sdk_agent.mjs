// Vercel AI SDK: each call names its stage by its headers, and the provider's headers name the run.

import { randomUUID } from 'node:crypto';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const url = process.env.CORTEX_URL ?? 'http://127.0.0.1:8080';
const question = 'Is it warmer in Oslo or in Lima?';
const run = randomUUID();

const cortex = createOpenAICompatible({
  name: 'cortex',
  baseURL: `${url}/v1`,
  apiKey: process.env.CORTEX_API_KEY ?? 'none',
  headers: { 'X-Workflow-Type': 'trip', 'X-Workflow-Id': run },
});
const model = cortex('cortex-emulated');
const at = stage => ({ 'X-Workflow-Stage': stage });

const temperature = tool({
  description: 'The temperature in a city.',
  inputSchema: z.object({ city: z.string() }),
  execute: ({ city }) => `${city}: ${{ Oslo: 4, Lima: 19 }[city]} degrees`,
});

const plan = await generateText({ model, system: 'You plan.', prompt: question, headers: at('plan') });
console.log('plan:', plan.text);

const research = await generateText({
  model,
  system: 'You research.',
  prompt: `${question}\n${plan.text}`,
  tools: { temperature },
  stopWhen: stepCountIs(5),
  headers: at('research'),
});
console.log('research:', research.text);

const write = streamText({
  model,
  system: 'You write.',
  prompt: `${question}\n${research.text}`,
  headers: at('write'),
});
const pieces = [];
for await (const piece of write.textStream) pieces.push(piece);
console.log(`write: ${pieces.join('')} (${pieces.length} pieces)`);
console.log('run:', run);
